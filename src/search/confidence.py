"""How sure a model is of each trajectory's own answer: its log-probability, its self-certainty.

Shapes: Q questions, n trajectories of each, R = Q * n rows, A tokens of the longest answer with
end-of-text, S inputs with which an answer starts, D model width.
"""

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

    def add(self, request, state, trajectories):
        """Adds further trajectories, with the State that ``sample_with_state`` gave."""
        eos, shape = self.model.config.eos_token_id, trajectories.num_thoughts.shape
        answers = trajectories.texts(eos)
        sums = answer_confidence(self.model, request, state, answers)  # (R, 2)
        log_probs, certainties = sums.cpu().view(*shape, 2).unbind(-1)  # (Q, n) each
        lengths = torch.tensor([len(ids) for ids in answers]).view(shape)
        self.tokens_read += int(lengths.sum())
        fields = {
            "answer_log_probs": rounded(log_probs),
            "self_certainties": rounded(certainties / lengths),
        }
        self.parts.append(fields)

    def fields(self):
        """{key: for each question a list of N values}.

        "answer_log_probs": log p(answer, end-of-text | trajectory). "self_certainties": the mean
        over these tokens of the divergence KL(uniform || p(token | before)), Kang et al. 2025,
        arXiv 2502.18581.
        """
        keys = self.parts[0]
        return {key: concatenate_lists([part[key] for part in self.parts]) for key in keys}


@torch.inference_mode()
def answer_confidence(model, request, state, answers, rows=None):
    """The sums over an answer's tokens of ``token_confidence``, (R, 2): log p and divergence.

    answers: R lists of token ids. rows: under which row of a State at the end of the latent phase
    each of them is read, None: each under its own. The State stays as it is.
    """
    rows = state.all_rows if rows is None else torch.tensor(rows, device=model.device)
    ids, lengths = (x.to(model.device) for x in pad_right(answers, 0))  # (R, A), (R,)
    longest = ids.shape[1]
    size = rows_within(model, request.latent_length + longest, longest + 1)
    chunks = zip(*(x.split(size) for x in (rows, ids, lengths)), strict=True)
    sums = [
        _confidence(model, request.sampling, state.select(chunk, extra=longest + 1), *texts)
        for chunk, *texts in chunks
    ]
    return torch.cat(sums)


def _confidence(model, sampling, state, ids, lengths):
    """``answer_confidence`` of rows that are read together; fills their suffix."""
    longest = ids.shape[1]
    x, positions = answer_start(model, state)  # (R, S, D), (R, S)
    x = torch.cat((x, model.embed(ids[:, :-1])), dim=1)  # (R, S + A - 1, D)
    further = torch.arange(1, longest, device=ids.device)
    positions = torch.cat((positions, positions[:, -1:] + further), dim=1)
    hidden = read_answer(model, sampling, state, x, positions, at_start=True)
    padding = torch.arange(longest, device=ids.device) >= lengths[:, None]  # (R, A)
    confidence = token_confidence(model, hidden[:, -longest:], ids)  # (R, A, 2)
    return confidence.masked_fill(padding[..., None], 0).sum(1)
