"""The sampling engine: N latent trajectories and their answers for each question of a batch.

Whatever the samples of a question share is computed once and kept once: with noise, or with
``dropout_prompt=False``, its prompt; where only answer tokens are sampled, its thoughts. Rows are
(question, sample) pairs; a question's rows are adjacent.

A backbone offers ``embed``, ``prefill``, ``extend``, ``to_thought``, ``lm_head`` and ``new_cache``
(src/models). One with ``stops_itself`` decides when to stop thinking, by its end token, at the
latest after ``latent_length`` thoughts; the row then waits, unread, for the rest of its batch.
Q questions, N samples, R = Q * N rows, G prompts in the cache (Q or R), T thoughts, D model width.
"""

from dataclasses import replace

import torch

from src.sampling import rng
from src.sampling.answers import COMPACT_BELOW, PASSES, decode_states
from src.sampling.compilation import run_step
from src.sampling.logits import next_tokens
from src.sampling.memory import in_turns, rows_in_flight, tokens_within
from src.sampling.state import State
from src.sampling.trajectories import Trajectories, pad_right


@torch.inference_mode()
def sample(model, request):
    """Samples ``n_samples`` trajectories for each prompt and decodes their answers.

    Sample n of question q under seed s is the same whatever else is in the request. Rows that do
    not fit in memory wait; they start as others finish.
    Raises ValueError when the sequence would not fit the model's positions.
    """
    room = rows_in_flight(model, request)
    turns = in_turns(request, room)
    parts, thoughts = [part for of_questions in turns for part in of_questions], []
    decoded = decode_states(model, request, _think_all(model, parts, thoughts), room)
    sampled = [
        _trajectories(part, *of_part, *answers)
        for part, answers, of_part in zip(parts, decoded, thoughts, strict=True)
    ]
    pools = []
    for of_questions in turns:
        pools.append(Trajectories.concatenate(sampled[: len(of_questions)]))
        del sampled[: len(of_questions)]
    return Trajectories.join(pools)


def _think_all(model, parts, thoughts):
    """Yields the State of each Request before its answers; appends to ``thoughts`` what ``think``
    gives beside it, with the number of thoughts."""
    for part in parts:
        state, of_part = think(model, part)
        thoughts.append((of_part, state.num_thoughts))
        yield state


def think(model, request):
    """The latent phase: the State before the answer, and the thoughts (R, T, D), 0 if missing."""
    request.check(model.config.max_position_embeddings)
    if request.n_samples > 1 and not request.sampling.varies_thoughts:
        return _think_once(model, request)
    state = start(model, request)
    first = state.thought
    thoughts = continue_thinking(model, request, state, 1)
    return state, torch.stack([first, *thoughts], dim=1)


def _think_once(model, request):
    """``think`` where the samples of a question differ in nothing before their answers."""
    state, thoughts = think(model, replace(request, n_samples=1))
    rows = state.all_rows.repeat_interleave(request.n_samples)  # (R,)
    state = state.select(rows)
    state.rng_keys = _row_keys(request, model.device)
    return state, thoughts[rows]


def decode(model, request, state, thoughts):
    """The Trajectories of what ``think`` returned. The state stays as it is."""
    ((tokens, finished),) = decode_states(model, request, [state], len(state))
    return _trajectories(request, thoughts, state.num_thoughts, tokens, finished)


def _trajectories(request, thoughts, num_thoughts, tokens, finished):
    """The Trajectories of a request from what its rows have, in order."""
    shape = (len(request.prompts), request.n_samples)
    return Trajectories(
        thoughts.unflatten(0, shape),
        num_thoughts.cpu().view(shape),
        _by_question(tokens, shape),
        _by_question(finished, shape),
    )


def _by_question(rows, shape):
    return [rows[q * shape[1] : (q + 1) * shape[1]] for q in range(shape[0])]


def start(model, request):
    """The State of all R rows at their first thought."""
    rng_keys, sampling = _row_keys(request, model.device), request.sampling
    sampling.prepare(model)
    hidden, prefix, prompt_lengths = _read_prompts(model, request, rng_keys)
    # The end-of-thinking token is read, the last answer token is not.
    positions = request.latent_length + request.max_new_tokens
    suffix = model.new_cache(len(rng_keys), positions)
    thought = sampling.next_thought(model.to_thought(hidden), rng_keys, 1)  # (R, D)
    num_thoughts = torch.ones_like(prompt_lengths)
    return State(thought, rng_keys, prompt_lengths, num_thoughts, prefix, suffix)


def _row_keys(request, device):
    questions = torch.tensor(request.question_ids).repeat_interleave(request.n_samples)
    samples = torch.arange(request.n_samples).repeat(len(request.question_ids))
    return rng.row_keys(request.seed, questions, request.first_sample + samples, device)


def _read_prompts(model, request, rng_keys):
    """Final hidden state (R, D) at each prompt's end, PrefixCache, and prompt lengths (R,)."""
    ids, lengths = (x.to(rng_keys.device) for x in pad_right(request.prompts, 0))  # (Q, L), (Q,)
    row_lengths = lengths.repeat_interleave(request.n_samples)
    if request.sampling.resample_prompt:
        return *_read_prompts_by_row(model, request, rng_keys, ids, row_lengths), row_lengths
    hidden, prefix = model.prefill(model.embed(ids), lengths)
    return hidden.repeat_interleave(request.n_samples, dim=0), prefix, row_lengths


def _read_prompts_by_row(model, request, rng_keys, ids, row_lengths):
    """Every row reads its prompt under hooks of its own: (R, D), PrefixCache of R groups.

    What the rows of a question share, up to their first dropout mask, is computed once. They are
    read in chunks, so that memory is bounded.
    """
    questions = torch.arange(len(ids), device=ids.device).repeat_interleave(request.n_samples)
    longest = ids.shape[1]
    positions = torch.arange(longest, device=ids.device)  # (L,)
    sampling, embeddings = request.sampling, model.embed(ids)  # (Q, L, D)
    shares_start = not sampling.changes_prompt_start and len(model.blocks) > 1
    shared = model.start_prompts(embeddings) if shares_start else embeddings
    keys = longest if sampling.dropout_attention else 0
    chunk = max(1, tokens_within(model, keys) // longest)
    states, prefix, first = [], None, 0
    for rows in torch.arange(len(rng_keys), device=ids.device).split(chunk):
        of_rows = questions[rows]
        x = shared.select(of_rows) if shares_start else shared[of_rows]  # (r, L, D)
        steps = positions - (row_lengths[rows, None] - 1)  # (r, L)
        hook = sampling.prompt_hook(model, rng_keys[rows], steps)
        hidden, part = model.prefill(x, row_lengths[rows], hook)
        prefix = prefix or part.allocate(part, row_lengths, longest)
        prefix.write(first, part)
        states.append(hidden)
        first += len(rows)
    return torch.cat(states), prefix


def continue_thinking(model, request, state, first):
    """Advances ``state`` from thought number ``first``, which is its next input, to the answer.

    Returns the thoughts after the first, (R, D) each.
    """
    if model.stops_itself:
        return _think_until_stop(model, request, state, first)
    thoughts = []
    for step in range(first, request.latent_length):
        _, state.thought = read_thought(model, request.sampling, state, step)  # (R, D)
        thoughts.append(state.thought)
    state.num_thoughts = torch.full_like(state.num_thoughts, request.latent_length)
    return thoughts


def _think_until_stop(model, request, state, first):
    """``continue_thinking`` of a backbone that stops itself; it reads all thoughts, the last too.

    ``active`` holds the rows ``rows`` of the state; finished ones are dropped once they are many.
    """
    active, rows, thoughts, step = state, state.all_rows, [], first
    alive = torch.ones_like(rows, dtype=torch.bool)
    num_thoughts = torch.zeros_like(state.num_thoughts)
    passes = PASSES.get(model.device.type, 1)
    for step in range(first, request.latent_length + 1):
        num_thoughts[rows] = torch.where(alive, step, num_thoughts[rows])
        hidden, thought = read_thought(model, request.sampling, active, step)  # (R', D) each
        alive = alive & ~ends_thinking(model, hidden)
        last = step == request.latent_length
        looks = last or step % passes == 0  # a look waits until a GPU is done
        if looks and (last or not bool(alive.any())):
            break
        every = thought.new_zeros(len(num_thoughts), thought.shape[1])  # (R, D)
        thoughts.append(every.index_copy(0, rows, thought.masked_fill(~alive[:, None], 0)))
        active.thought = thought
        kept = _unfinished(alive) if looks else None
        if kept is not None:
            state.write_suffix(rows, active)
            active, rows, alive = active.select(kept), rows[kept], alive[kept]
    state.write_suffix(rows, active)
    state.suffix.set_lengths(num_thoughts)
    state.thought, state.num_thoughts = None, num_thoughts
    return thoughts


def ends_thinking(model, hidden):
    """Whether the model ends its latent phase at hidden states (R, D)."""
    return next_tokens(model, hidden) == model.config.end_latent_token_id


def read_thought(model, sampling, state, step):
    """The final hidden state (R, D) at the state's thought, which is number ``step``, and the next
    thought (R, D)."""
    window, mask = state.suffix.open(1)
    steps = torch.full_like(state.prompt_lengths, step)
    inputs = (state.thought, steps, state.rng_keys, state.prompt_lengths)
    inputs = (*inputs, state.prefix, window, mask)
    return run_step(model, thought_step, sampling, *inputs)


def thought_step(model, sampling, thought, steps, rng_keys, prompt_lengths, prefix, window, mask):
    """``read_thought`` without anything that waits for the device or depends on a value.

    thought (R, D), its number ``steps`` (R,); window, mask: as SuffixCache.open gives them.
    """
    hook = sampling.pass_hook(model, rng_keys, steps[:, None])
    positions = (prompt_lengths + steps - 1)[:, None]  # (R, 1)
    hidden = model.step(thought[:, None], positions, prefix, window, mask, hook)[:, 0]  # (R, D)
    return hidden, sampling.next_thought(model.to_thought(hidden), rng_keys, steps + 1)


def _unfinished(alive):
    """The unfinished rows, an index tensor, or None while finished ones are few."""
    rows = alive.nonzero()[:, 0]
    return rows if len(rows) <= COMPACT_BELOW * len(alive) else None
