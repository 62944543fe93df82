"""Rewards of prefixes as they grow (beam search): each thought and each prompt is read once."""

import torch

from src.sampling.trajectories import pad_right, thought_mask


class PrefixScorer:
    """A LatentRM (src.models.latent_rm) over the prefixes of R rows, W their model's width.

    prompts: Q lists of token ids; a question's rows are adjacent. capacity: positions to come, of
    thoughts T and where ``look`` sees answers of their tokens. num_positions: those read so far.
    """

    def __init__(self, model, prompts, capacity):
        self.model, self.capacity, self.suffix, self.num_positions = model, capacity, None, 0
        ids, lengths = (x.to(model.device) for x in pad_right(prompts, 0))
        self.prefix, self.prompt_lengths = model.read_prompts(ids, lengths), lengths

    def extend(self, thoughts, parents=None):
        """r_t (R,) of the next thought (R, W) of every row.

        parents (R,): the earlier rows that the new rows continue; None at the first thought.
        """
        model, rows = self.model, len(thoughts)
        if parents is None:
            self.suffix = model.new_cache(rows, self.capacity)
        else:
            self.suffix = self.suffix.select(parents)
        positions = self._prompt_lengths_of(rows) + self.suffix.length  # (R,)
        x = thoughts[:, None].to(model.dtype)  # (R, 1, W)
        hidden = model.extend(x, positions[:, None], self.prefix, self.suffix)
        self.num_positions += rows
        return model.classify(hidden)[:, 0].float()

    def look(self, outlook, num_thoughts):
        """The rewards (R, K) of the thoughts that lie ahead, and that of the answer, (R,) or 0.

        outlook: a src.search.lookahead.Outlook. num_thoughts (R,): thoughts of the rows so far. The
        rows stay as they are.
        """
        model, ahead, num_ahead = self.model, outlook.thoughts, outlook.num_ahead
        x, (rows, most) = ahead.to(model.dtype), ahead.shape[:2]  # (R, K, W)
        if outlook.tokens is not None:
            answers = pad_right(outlook.answer_ids(model.config.eos_token_id), -1)[0]
            answers = answers.to(model.device)  # (R, A)
            x = model.append_answers(x, num_ahead, answers)  # (R, K + 1 + A, W)
            self.num_positions += int((answers >= 0).sum())
        elif not most:
            return x.new_zeros(rows, 0).float(), 0.0
        hidden = self._read(x, num_thoughts)  # (R, K (+ 1 + A), W)
        exists = thought_mask(num_ahead, most)  # (R, K)
        self.num_positions += int(exists.sum())
        rewards = model.classify(hidden[:, :most]).float() * exists
        if outlook.tokens is None:
            return rewards, 0.0
        return rewards, model.answer_rewards(hidden, num_ahead, answers)

    def _read(self, x, num_thoughts):
        """The hidden states of x (R, S, W) after num_thoughts (R,) of each row."""
        suffix = self.suffix.fork()
        suffix.set_lengths(num_thoughts)
        first = self._prompt_lengths_of(len(x)) + num_thoughts  # (R,)
        positions = first[:, None] + torch.arange(x.shape[1], device=x.device)  # (R, S)
        last = self.model.config.max_position_embeddings - 1
        return self.model.extend(x, positions.clamp(max=last), self.prefix, suffix)

    def _prompt_lengths_of(self, rows):
        return self.prompt_lengths.repeat_interleave(rows // len(self.prompt_lengths))  # (R,)

    def select(self, rows):
        """Keeps the given rows, an index tensor, in its order."""
        self.suffix = self.suffix.select(rows)
