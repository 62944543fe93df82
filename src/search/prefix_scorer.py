"""Rewards of prefixes as they grow (beam search): each thought and each prompt is read once."""

from src.sampling.trajectories import pad_right


class PrefixScorer:
    """A LatentRM (src.models.latent_rm) over the prefixes of R rows, W their model's width.

    prompts: Q lists of token ids; a question's rows are adjacent. capacity: thoughts T to come.
    """

    def __init__(self, model, prompts, capacity):
        self.model, self.capacity, self.suffix = model, capacity, None
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
        per_question = rows // len(self.prompt_lengths)
        positions = self.prompt_lengths.repeat_interleave(per_question) + self.suffix.length  # (R,)
        x = thoughts[:, None].to(model.dtype)  # (R, 1, W)
        hidden = model.extend(x, positions[:, None], self.prefix, self.suffix)
        return model.classify(hidden)[:, 0].float()

    def select(self, rows):
        """Keeps the given rows, an index tensor, in its order."""
        self.suffix = self.suffix.select(rows)
