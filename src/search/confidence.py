"""How sure a model is of each trajectory's own answer: its log-probability, its self-certainty.

Shapes: Q questions, n trajectories of each, R = Q * n rows, A tokens of the longest answer with
end-of-text, S inputs with which an answer starts, D model width.
"""

from itertools import chain

import torch

from src.sampling.answers import answer_start, read_answer
from src.sampling.logits import token_confidence
from src.sampling.memory import rows_within
from src.sampling.trajectories import concatenate_lists, pad_right
from utils.records import rounded


class ConfidencePool:
    """The confidence in the answers of a growing pool of trajectories.

    Each answer is read once more after its own trajectory, under the same dropout as when it was
    written. tokens_read: token positions read so far.
    """

    def __init__(self, model):
        self.model, self.tokens_read = model, 0
        self.parts = []  # {key: for each question a list of n values} of each part

    @torch.inference_mode()
    def add(self, request, state, trajectories):
        """Adds further trajectories, with the State that ``sample_with_state`` gave."""
        eos, shape = self.model.config.eos_token_id, trajectories.num_thoughts.shape
        written = zip(chain(*trajectories.tokens), chain(*trajectories.finished), strict=True)
        answers = [ids + [eos] * finished for ids, finished in written]
        ids, lengths = (x.to(self.model.device) for x in pad_right(answers, 0))  # (R, A), (R,)
        longest = ids.shape[1]
        rows = rows_within(self.model, request.latent_length + longest, longest + 1)
        chunks = state.all_rows.split(rows)
        sums = torch.cat([self._read(request, state, rows, ids, lengths) for rows in chunks])
        log_probs, certainties = sums.cpu().view(*shape, 2).unbind(-1)  # (Q, n) each
        lengths = lengths.cpu().view(shape)
        self.tokens_read += int(lengths.sum())
        fields = {
            "answer_log_probs": rounded(log_probs),
            "self_certainties": rounded(certainties / lengths),
        }
        self.parts.append(fields)

    def _read(self, request, state, rows, ids, lengths):
        """The sums over an answer's tokens of ``token_confidence``, (r, 2), of some rows."""
        ids, lengths, longest = ids[rows], lengths[rows], ids.shape[1]
        branch = state.select(rows, extra=longest + 1)
        x, positions = answer_start(self.model, branch)  # (r, S, D), (r, S)
        x = torch.cat((x, self.model.embed(ids[:, :-1])), dim=1)  # (r, S + A - 1, D)
        further = torch.arange(1, longest, device=ids.device)
        positions = torch.cat((positions, positions[:, -1:] + further), dim=1)
        hidden = read_answer(self.model, request.sampling, branch, x, positions, at_start=True)
        hidden = hidden[:, -longest:]  # (r, A, D)
        padding = torch.arange(longest, device=ids.device) >= lengths[:, None]  # (r, A)
        confidence = token_confidence(self.model, hidden, ids)  # (r, A, 2)
        return confidence.masked_fill(padding[..., None], 0).sum(1)

    def fields(self):
        """{key: for each question a list of N values}.

        "answer_log_probs": log p(answer, end-of-text | trajectory). "self_certainties": the mean
        over these tokens of the divergence KL(uniform || p(token | before)), Kang et al. 2025,
        arXiv 2502.18581.
        """
        keys = self.parts[0]
        return {key: concatenate_lists([part[key] for part in self.parts]) for key in keys}
