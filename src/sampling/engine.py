"""The sampling engine: N latent trajectories and their answers for each question of a batch.

Whatever the samples of a question share is computed once and kept once: with noise, or with
``dropout_prompt=False``, its prompt. Rows are (question, sample) pairs, a question's rows adjacent.

A backbone offers ``embed``, ``prefill``, ``extend``, ``to_thought``, ``lm_head`` and ``new_cache``;
see src/models. One that ``stops_itself`` ends a row's latent phase by its end token, at the latest after
``latent_length`` thoughts: the row then waits, unread, until all of its batch have ended.
Q questions, N samples, R = Q * N rows, T thoughts, A answer tokens, D model width.
"""

from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch.nn.functional import pad

from src.sampling import rng
from src.sampling.memory import tokens_within
from src.sampling.samplers import DETERMINISTIC, Sampling, add_noise, dropout_hook
from utils.config import check_seed

COMPACT_BELOW = 0.75  # share of unfinished rows under which the answer phase copies them together


@dataclass(frozen=True)
class Request:
    """What to sample. prompts: Q lists of token ids; questions: their Q indices, for the keys.

    n_samples trajectories of each, number ``first_sample`` and those after it, so that a pool can grow.
    latent_length: thoughts of a trajectory, or for a backbone that stops itself its cap.
    """

    prompts: list
    questions: list
    n_samples: int = 1
    latent_length: int = 6
    max_new_tokens: int = 64
    seed: int = 0
    sampling: Sampling = DETERMINISTIC
    first_sample: int = 0


@dataclass
class Trajectories:
    """thoughts (Q, N, T, D) as they were fed back; tokens[q][n]: answer ids, without end-of-text.

    lengths (Q, N): how many of the T thoughts exist; the others are 0. finished[q][n]: whether end-of-text
    came within the limit.
    """

    thoughts: torch.Tensor
    lengths: torch.Tensor
    tokens: list
    finished: list

    def thoughts_of(self, q):
        """Thoughts (N, T', D) of question number q, T' those of its longest trajectory."""
        return self.thoughts[q, :, : int(self.lengths[q].max())]

    @classmethod
    def joined(cls, parts):
        """One pool of the parts that it grew by, each with further samples of the same questions."""
        if len(parts) == 1:
            return parts[0]
        longest = max(part.thoughts.shape[2] for part in parts)
        thoughts = [pad(part.thoughts, (0, 0, 0, longest - part.thoughts.shape[2])) for part in parts]
        return cls(
            torch.cat(thoughts, dim=1),
            torch.cat([part.lengths for part in parts], dim=1),
            side_by_side([part.tokens for part in parts]),
            side_by_side([part.finished for part in parts]),
        )

    def answer_ids(self, q, eos):
        """Answers of question number q, (N, A): ids, end-of-text where it came, then -1."""
        answers = zip(self.tokens[q], self.finished[q], strict=True)
        return pad_right([ids + [eos] * done for ids, done in answers], -1)[0]


@dataclass
class State:
    """Rows between two forward passes: of prompt and earlier thoughts all is cached.

    thought (R, D) is the next input, or None when all thoughts have been read; keys (R,) are the rows'
    random keys, lengths (R,) those of their prompts, counts (R,) the thoughts that they have.
    """

    thought: torch.Tensor | None
    keys: torch.Tensor
    lengths: torch.Tensor
    counts: torch.Tensor
    prompt: object
    own: object

    def fork(self):
        """The same state once more, to go on from here after this one is done with."""
        return replace(self, own=self.own.fork())


@torch.inference_mode()
def sample(model, request):
    """Samples ``n_samples`` trajectories for each prompt and decodes their answers greedily.

    Sample n of question q under seed s is the same whatever else is in the request.
    Raises ValueError when the sequence would not fit the model's positions.
    """
    state, thoughts = think(model, request)
    return decode(model, request, state, thoughts)


def think(model, request):
    """The latent phase: the state before the answer, and the thoughts (R, T, D), 0 where none is."""
    _check(model, request)
    state = start(model, request)
    first = state.thought
    return state, torch.stack([first, *think_on(model, request, state, 1)], dim=1)


def decode(model, request, state, thoughts):
    """The Trajectories of what ``think`` returned; consumes the state."""
    shape, counts = (len(request.prompts), request.n_samples), state.counts
    tokens, finished = answer(model, request, state)
    return Trajectories(
        thoughts.unflatten(0, shape),
        counts.cpu().view(shape),
        _regroup(tokens, shape),
        _regroup(finished, shape),
    )


def side_by_side(parts):
    """For each question one list, of the lists that the parts of its pool have."""
    return [list(chain.from_iterable(lists)) for lists in zip(*parts, strict=True)]


def check_length(limit, longest_prompt, latent_length, max_new_tokens):
    """Raises ValueError when prompt, thoughts and answer do not fit the model's positions, ``limit``."""
    needed = longest_prompt + latent_length + max_new_tokens  # the last token is never read
    if longest_prompt + latent_length >= limit:
        raise ValueError(
            f"a prompt of {longest_prompt} tokens and {latent_length} thoughts leave no room for an "
            f"answer in the model's {limit} positions: drop the longest questions"
        )
    if needed > limit:
        raise ValueError(
            f"a prompt of {longest_prompt} tokens, {latent_length} thoughts and the answer need "
            f"{needed} positions, the model has {limit}: lower max_new_tokens"
        )


def _regroup(rows, shape):
    return [rows[q * shape[1] : (q + 1) * shape[1]] for q in range(shape[0])]


def _check(model, request):
    if len(request.questions) != len(request.prompts):
        raise ValueError(
            f"{len(request.prompts)} prompts, but {len(request.questions)} question indices"
        )
    if request.n_samples > 1 and request.sampling.by is None:
        raise ValueError("without sampling all trajectories are equal: ask for one sample")
    if min(request.n_samples, request.latent_length, request.max_new_tokens) < 1:
        raise ValueError("samples, thoughts and answer tokens must be at least one each")
    check_seed(request.seed)
    if not all(map(len, request.prompts)):
        raise ValueError("a prompt is empty")
    longest = max(map(len, request.prompts))
    limit = model.config.max_position_embeddings
    check_length(limit, longest, request.latent_length, request.max_new_tokens)


def pad_right(sequences, fill):
    """Lists of ids to one tensor (Q, L), padded on the right with ``fill``, and their lengths (Q,)."""
    lengths = torch.tensor([len(ids) for ids in sequences])
    padded = torch.full((len(sequences), int(lengths.max())), fill)
    for row, ids in zip(padded, sequences, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return padded, lengths


def _keys(request, device):
    questions = torch.tensor(request.questions).repeat_interleave(request.n_samples)
    samples = request.first_sample + torch.arange(request.n_samples).repeat(len(request.questions))
    return rng.row_keys(request.seed, questions, samples, device)


def _read_prompts(model, request, keys):
    """Final hidden state (R, D) at the prompt's end, PromptCache, and lengths (R,)."""
    ids, lengths = (x.to(keys.device) for x in pad_right(request.prompts, 0))
    row_lengths = lengths.repeat_interleave(request.n_samples)
    if not request.sampling.own_prompts:
        hidden, cache = model.prefill(model.embed(ids), lengths)
        return hidden.repeat_interleave(request.n_samples, dim=0), cache, row_lengths
    row_of = torch.arange(len(ids), device=ids.device).repeat_interleave(request.n_samples)
    chunk = max(1, tokens_within(model) // ids.shape[1])
    states, cache = [], None
    for row in torch.arange(len(keys), device=keys.device).split(chunk):
        x = model.embed(ids[row_of[row]])  # (r, L, D)
        steps = torch.arange(ids.shape[1], device=ids.device) - (row_lengths[row, None] - 1)
        drop = dropout_hook(request.sampling, keys[row], steps)
        hidden, part = model.prefill(x, row_lengths[row], drop)
        cache = cache or part.room(part, row_lengths)
        cache.put(sum(map(len, states)), part)
        states.append(hidden)
    return torch.cat(states), cache, row_lengths


def start(model, request):
    """The state whose thought is the first one, of all R rows."""
    keys = _keys(request, model.device)
    hidden, prompt, lengths = _read_prompts(model, request, keys)
    own = model.new_cache(len(keys), request.latent_length + request.max_new_tokens)
    thought = add_noise(request.sampling, model.to_thought(hidden), keys, 1)  # (R, D)
    return State(thought, keys, lengths, torch.ones_like(lengths), prompt, own)


def think_on(model, request, state, first):
    """The thoughts after thought number ``first``, which is the state's, up to the last: (R, D) each.

    Moves the state on to the answer.
    """
    if model.stops_itself:
        return _think_until_stop(model, request, state, first)
    found = []
    for step in range(first, request.latent_length):
        hidden = read_thought(model, request.sampling, state, step)  # (R, D)
        state.thought = add_noise(request.sampling, model.to_thought(hidden), state.keys, step + 1)
        found.append(state.thought)
    state.counts = torch.full_like(state.counts, request.latent_length)
    return found


def _think_until_stop(model, request, state, first):
    """``think_on`` of a backbone that stops itself; all thoughts have been read in the end.

    Rows that have ended are dropped once they are many; what the others read then goes to the whole
    state's cache by the way of theirs.
    """
    found, flight, last = [], replace(state, own=state.own.fork()), first
    row = torch.arange(len(state.keys), device=state.keys.device)  # where a row in flight came from
    alive = torch.ones_like(row, dtype=torch.bool)
    state.counts = torch.zeros_like(state.counts)
    for last in range(first, request.latent_length + 1):
        state.counts[row[alive]] = last
        hidden = read_thought(model, request.sampling, flight, last)  # (R', D)
        alive = alive & ~stops(model, hidden)
        if last == request.latent_length or not bool(alive.any()):
            break
        new = add_noise(request.sampling, model.to_thought(hidden), flight.keys, last + 1)
        found.append(new.new_zeros(len(state.keys), new.shape[1]).index_copy(0, row[alive], new[alive]))
        flight.thought = new
        whole = flight.own
        keep = _compact(flight, alive)
        if keep is not None:
            state.own.put(row, whole)
            row, alive, flight.thought = row[keep], alive[keep], flight.thought[keep]
    state.own.put(row, flight.own)
    state.own.length, state.thought = flight.own.length, None
    state.own.hide(state.counts)
    return found


def stops(model, hidden):
    """Whether the model ends its latent phase at hidden states (R, D)."""
    return model.lm_head(hidden).argmax(-1) == model.config.end_latent_token_id


def read_thought(model, sampling, state, step):
    """The final hidden state (R, D) at the state's thought, which is number ``step``."""
    positions = state.lengths[:, None] + (step - 1)  # (R, 1)
    drop = dropout_hook(sampling, state.keys, torch.full_like(positions, step))
    return model.extend(state.thought[:, None], positions, state.prompt, state.own, drop)[:, 0]


def answer(model, request, state):
    """Greedy decoding after the forced end-of-thinking token; rows that are done are dropped.

    Returns R lists of token ids, and whether each came to its end-of-text. Consumes the state.
    """
    sampling, rows = request.sampling, len(state.keys)
    x, positions = answer_start(model, state)  # (R, S, D), (R, S)
    written = torch.zeros(rows, request.max_new_tokens, dtype=torch.int64, device=model.device)
    count = torch.zeros(rows, dtype=torch.int64, device=model.device)
    row = torch.arange(rows, device=model.device)  # where each row in flight came from
    alive = torch.ones(rows, dtype=torch.bool, device=model.device)
    for step in range(request.max_new_tokens):
        steps = positions - (state.lengths[:, None] - 1)
        drop = dropout_hook(sampling, state.keys, steps, active=sampling.dropout_answer)
        hidden = model.extend(x, positions, state.prompt, state.own, drop)[:, -1]  # (R, D)
        token = model.lm_head(hidden).argmax(-1)  # (R,)
        alive = alive & (token != model.config.eos_token_id)
        written[row[alive], step] = token[alive]
        count[row[alive]] += 1
        if not bool(alive.any()):
            break
        keep = _compact(state, alive)
        if keep is not None:
            row, token, positions, alive = row[keep], token[keep], positions[keep], alive[keep]
        x, positions = model.embed(token)[:, None], positions[:, -1:] + 1
    unfinished = set(row[alive].tolist())
    tokens = [ids[:n].tolist() for ids, n in zip(written.cpu(), count.tolist(), strict=True)]
    return tokens, [r not in unfinished for r in range(rows)]


def answer_start(model, state):
    """Inputs (R, S, D) and positions (R, S) by which the answer starts: the last thought, where it has not
    been read, and the forced end-of-thinking token."""
    end = torch.full_like(state.lengths, model.config.end_latent_token_id)
    place = state.lengths + state.counts  # (R,) of that token
    if state.thought is None:
        return model.embed(end)[:, None], place[:, None]
    x = torch.stack((state.thought, model.embed(end)), dim=1)  # (R, 2, D)
    return x, torch.stack((place - 1, place), dim=1)


def _compact(state, alive):
    """Drops finished rows from the state once they are many; the kept rows, or None.

    Groups stay rectangular: each keeps as many rows as the one with most unfinished, and groups that
    are done go whole.
    """
    groups = state.prompt.groups
    per_group = alive.view(groups, -1)  # (G, M)
    members = int(per_group.sum(1).max())
    left = per_group.any(1).nonzero()[:, 0]  # (G',)
    if len(left) * members > COMPACT_BELOW * len(alive):
        return None
    order = per_group[left].logical_not().byte().argsort(dim=1, stable=True)[:, :members]  # (G', M')
    keep = (left[:, None] * per_group.shape[1] + order).flatten()
    if len(left) < groups:
        state.prompt = state.prompt.select(left)
    state.own = state.own.select(keep)
    state.keys, state.lengths = state.keys[keep], state.lengths[keep]
    return keep
