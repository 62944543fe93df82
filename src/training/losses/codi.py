"""CODI's self-distillation (Shen et al., arXiv 2502.21074)."""

from dataclasses import replace

import torch
import torch.nn.functional as F

from src.sampling import rng
from src.sampling.samplers import DETERMINISTIC
from src.training.curriculum import IGNORED
from src.training.losses.coconut import (
    CoconutLoss,
    read_words,
    training_dropout,
    words_loss,
    zero_loss,
)

_TEACHER, _STUDENT, _TARGET = range(3)  # passes, each with dropout masks of its own


class CodiLoss(CoconutLoss):
    """One model is teacher, with steps in words, and student, with latent thoughts, at once.

    Teacher: question, steps but the last one, ``The answer is: N``, end of text; no markers. All
    tokens after the question are targets. Student: question, start marker, thoughts, end marker,
    the explicit steps of a stage that has some, ``The answer is: N``, end of text. Steps are joined
    by spaces; question, steps and answer follow one another without any, as in zhenyi4/codi
    (train.py, src/model.py), which encodes each of them alone and joins the tokens.

    loss = teacher * CE + student * CE + distill * distance + probe * COCONUT's probe. The distance
    is that of the student's state to the teacher's before the answer's number: smooth L1, divided
    by the standard deviation of the teacher's over the rows of a forward pass and the width,
    averaged over all hidden states, the embedding's included. The teacher's state comes from a pass
    of its own, without gradient. teacher_last_step: the teacher reads and learns the last step too.
    Shapes: as CoconutLoss; H hidden states, one more than the layers.
    """

    default_settings = {
        "teacher": 1.0, "student": 1.0, "distill": 1.0, "probe": 0.0, "teacher_last_step": False,
    }  # fmt: skip

    @staticmethod
    def accepts(row):
        """Whether a row of the training data can be learned from: not if its answer has a sign."""
        return row["answer"][:1].isdigit()

    def format_row(self, row, stage, speed=None):
        """The prompt, the student's and the teacher's text, and their common end from the number
        on."""
        prompt, texts = super().format_row(row, stage)
        last = len(row["steps"]) - (not self.settings["teacher_last_step"])
        teacher = self._format_text(row, row["steps"][: max(0, last)])
        # With its space, which byte-pair tokens hold: the token before is the colon.
        before = self.model.format_answer("").rstrip()
        number = (
            self.model.format_answer(row["answer"]).removeprefix(before) + self.tokenizer.eos_token
        )
        return prompt, {"student": texts["text"], "teacher": teacher, "number": number}

    def _format_text(self, row, steps):
        return " ".join(steps) + self.model.format_answer(row["answer"]) + self.tokenizer.eos_token

    def num_positions(self, batch, stage):
        student = stage.thoughts + batch.texts["student"].shape[1]
        teacher = batch.texts["teacher"].shape[1] - 1  # it does not read the start marker
        return batch.prompts.shape[1] + max(student, teacher) - 1

    def solved(self, batch, stage):
        """Whether each problem (B,) is solved greedily by the student, explicit steps included; in
        a stage without thoughts, by the teacher."""
        if not stage.thoughts:
            hidden = read_words(self.model, _of_teacher(batch), "teacher", DETERMINISTIC, None)
            return words_loss(self.model, batch, "teacher", hidden)[1]
        _, hidden = self.read(batch, "student", stage.thoughts, DETERMINISTIC, None)
        return self.text_loss(batch, "student", hidden)[1]

    def forward(self, batch, stage, rng_keys):
        """The loss (scalar), and whether each student's text is predicted without a mistake (B,);
        in a stage without thoughts, the teacher's. rng_keys (B,): as CoconutLoss."""
        dropout, settings = (
            training_dropout(stage, self.model_dropout * self.training),
            self.settings,
        )
        keys = rng.fold(rng_keys[:, None], torch.arange(3, device=rng_keys.device)).unbind(1)
        hidden = read_words(self.model, _of_teacher(batch), "teacher", dropout, keys[_TEACHER])
        teacher, right = words_loss(self.model, batch, "teacher", hidden)
        loss = settings["teacher"] * teacher
        if not stage.thoughts:
            return loss + zero_loss(self.probe) + zero_loss(self.model.projector), right
        states = []
        thoughts, hidden = self.read(
            batch, "student", stage.thoughts, dropout, keys[_STUDENT], states
        )
        student, right = self.text_loss(batch, "student", hidden)
        # After the passes with gradient: autocast of older torch versions reused the weights that
        # it had cast without one (pytorch/pytorch#165068).
        target = self._target(batch, dropout, keys[_TARGET])
        distance = _distance(_before_number(batch, "student", states), target)
        loss = loss + settings["student"] * student + settings["distill"] * distance
        return loss + settings["probe"] * self.probe_loss(thoughts, batch.digits), right

    @torch.no_grad()
    def _target(self, batch, dropout, rng_keys):
        """The teacher's states (H, B, D) before the number."""
        states = []
        read_words(self.model, _of_teacher(batch), "teacher", dropout, rng_keys, states)
        return _before_number(batch, "teacher", states)


def _of_teacher(batch):
    """The batch with prompts that end with the question: without the start marker."""
    return replace(batch, prompts=batch.prompts[:, :-1], prompt_lengths=batch.prompt_lengths - 1)


def _before_number(batch, name, states):
    """States (H, B, D) at the last token before the number, from H times (B, S - 1, D)."""
    number_lengths = (batch.texts["number"] != IGNORED).sum(1)  # (B,), end-of-text included
    position = (batch.texts[name] != IGNORED).sum(1) - number_lengths - 1  # (B,)
    rows = torch.arange(len(position), device=position.device)
    return torch.stack([layer[rows, position].float() for layer in states])


def _distance(student, target):
    """The distillation loss (scalar) of states (H, B, D)."""
    errors = F.smooth_l1_loss(student, target, reduction="none").mean((1, 2))  # (H,)
    return (errors / target.std((1, 2))).mean()
