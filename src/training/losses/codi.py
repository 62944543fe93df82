"""CODI's self-distillation (Shen et al., arXiv 2502.21074)."""

import torch
import torch.nn.functional as F

from src.sampling.samplers import Sampling
from src.training.curriculum import IGNORED
from src.training.losses.coconut import CoconutLoss, training_dropout, zero_loss


class CodiLoss(CoconutLoss):
    """One model is teacher, with explicit steps, and student, with latent thoughts, at once.

    teacher, student: weights of the cross-entropy of their texts. distill: weight of the smooth L1
    distance between their states before the answer's number, divided by the teacher's standard
    deviation over a process's rows, averaged over layers. probe: as COCONUT's.
    """

    default_settings = {"teacher": 1.0, "student": 1.0, "distill": 1.0, "probe": 0.0}

    def format_row(self, row, stage, speed=None):
        """The prompt, the student's and the teacher's text, and the answer's number, their end."""
        prompt, texts = super().format_row(row, stage)
        student = texts["text"]
        number = student[student.rindex(row["answer"]) :]
        if student.removesuffix(number).endswith(" "):
            number = " " + number  # byte-pair tokens hold the space
        teacher = self._format_text(row, row["steps"])
        return prompt, {"student": student, "teacher": teacher, "number": number}

    def num_positions(self, batch, stage):
        student = stage.thoughts + batch.texts["student"].shape[1]
        return batch.prompts.shape[1] + max(student, batch.texts["teacher"].shape[1]) - 1

    def solved(self, batch, stage):
        name = "student" if stage.thoughts else "teacher"
        _, hidden = self.read(batch, name, stage.thoughts, Sampling(), None)
        return self.text_loss(batch, name, hidden)[1]

    def forward(self, batch, stage, rng_keys=None):
        """The loss (scalar), and whether each student's text is predicted without a mistake (B,);
        in a stage without thoughts, the teacher's."""
        dropout, weights = training_dropout(stage, self.model_dropout), self.weights
        teacher_layers, student_layers = [], []
        _, hidden = self.read(batch, "teacher", 0, dropout, rng_keys, teacher_layers)
        teacher, right = self.text_loss(batch, "teacher", hidden)
        loss = weights["teacher"] * teacher
        if not stage.thoughts:
            return loss + zero_loss(self.probe) + zero_loss(self.model.projector), right
        thoughts, hidden = self.read(
            batch, "student", stage.thoughts, dropout, rng_keys, student_layers
        )
        student, right = self.text_loss(batch, "student", hidden)
        distance = _distillation(batch, teacher_layers, student_layers)
        loss = loss + weights["student"] * student + weights["distill"] * distance
        return loss + weights["probe"] * self.probe_loss(thoughts, batch.digits), right


def _distillation(batch, teacher_layers, student_layers):
    """The student's distance to the teacher (scalar), from states (B, S - 1, D) of each layer."""
    number_lengths = (batch.texts["number"] != IGNORED).sum(1)  # (B,), end-of-text included

    def before_number(name, states):  # (B, D)
        position = (batch.texts[name] != IGNORED).sum(1) - number_lengths - 1
        return states[torch.arange(len(position), device=position.device), position].float()

    losses = []
    for teacher, student in zip(teacher_layers, student_layers, strict=True):
        target = before_number("teacher", teacher).detach()  # no gradient goes to the teacher
        losses.append(F.smooth_l1_loss(before_number("student", student), target) / target.std())
    return torch.stack(losses).mean()
