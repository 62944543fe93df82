"""CODI's self-distillation (Shen et al., arXiv 2502.21074)."""

import torch
import torch.nn.functional as F

from src.sampling.samplers import Sampling
from src.training.coconut_loss import CoconutLoss, idle


class CodiLoss(CoconutLoss):
    """One model is teacher, with explicit steps, and student, with latent thoughts, at once.

    teacher and student: cross-entropy of their texts. distill: smooth L1 between their states at the token
    before the answer, divided by the teacher's standard deviation, averaged over layers; no gradient goes
    to the teacher. probe: as COCONUT's. The deviation is that of a process's share of the batch.
    """

    weights = {"teacher": 1.0, "student": 1.0, "distill": 1.0, "probe": 0.0}

    def parts(self, row, stage, speed=None):
        """The prompt, and the texts of student, teacher, and what both end with, the answer's number."""
        prompt, found = super().parts(row, stage)
        text = found["text"]
        number = text[text.rindex(row["answer"]) :]
        if text.removesuffix(number).endswith(" "):
            number = " " + number  # byte-pair tokens hold the space
        texts = {"student": text, "teacher": self._text(row, row["steps"]), "number": number}
        return prompt, texts

    def positions(self, batch, stage):
        student = stage.thoughts + batch.texts["student"].shape[1]
        return batch.prompt.shape[1] + max(student, batch.texts["teacher"].shape[1]) - 1

    def solved(self, batch, stage):
        name = "student" if stage.thoughts else "teacher"
        _, hidden = self.read(batch, name, stage.thoughts, Sampling(), None)
        return self.text_loss(batch, name, hidden)[1]

    def forward(self, batch, stage, keys=None):
        """Loss (scalar), and right (B,): whether the student's text (without thoughts: the teacher's) is
        predicted without a mistake."""
        sampling, taught, learned = Sampling("dropout", stage.dropout), [], []
        _, hidden = self.read(batch, "teacher", 0, sampling, keys, taught)
        teacher, right = self.text_loss(batch, "teacher", hidden)
        loss = self.w["teacher"] * teacher
        if not stage.thoughts:
            return loss + idle(self.probe) + idle(self.model.projector), right
        thoughts, hidden = self.read(batch, "student", stage.thoughts, sampling, keys, learned)
        student, right = self.text_loss(batch, "student", hidden)
        loss = (
            loss
            + self.w["student"] * student
            + self.w["distill"] * _distill(batch, taught, learned)
        )
        return loss + self.w["probe"] * self.probe_loss(thoughts, batch.digits), right


def _distill(batch, taught, learned):
    """The distance of the student's states to the teacher's, from (B, S - 1, D) a layer of each."""
    numbers = (batch.texts["number"] != -100).sum(
        1
    )  # (B,) tokens of the answer's number and end-of-text

    def at_answer(name, state):  # (B, D) at the token before the number
        place = (batch.texts[name] != -100).sum(1) - numbers - 1
        return state[torch.arange(len(place), device=place.device), place].float()

    losses = []
    for teacher, student in zip(taught, learned, strict=True):
        target = at_answer("teacher", teacher).detach()
        losses.append(F.smooth_l1_loss(at_answer("student", student), target) / target.std())
    return torch.stack(losses).mean()
