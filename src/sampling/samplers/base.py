"""What a sampler is made of: hooks into reading, thinking and answering.

Steps count positions from the prompt's last token, which is step 0 and yields thought 1. Thought t
is read at step t; earlier prompt tokens have negative steps.
"""

from dataclasses import dataclass

ATTENTION, MLP = range(2)  # dropout sites of a block: after attention, after the MLP
PROMPT, SUFFIX = range(2)  # where an attention weight's key is: in the prompt, or after it
# Linear maps of a block: src.models.decoder.Decoder.weight_of.
TARGETS = ("attn_q", "attn_k", "attn_v", "attn_o", "mlp_up", "mlp_down")


class Sampler:
    """One way to make trajectories differ. At strength 0 it does nothing.

    A subclass is a frozen dataclass; its fields are flags of the same name and fields of Sampling.
    It checks them in ``__post_init__`` (ValueError). It sets ``strength``, the field that tunes it,
    and which of its hooks do something:

    varies_passes: forward passes over prompt or thoughts, ``pass_hook`` and ``answer_hook``.
    varies_thoughts: the vector that is fed back, ``next_thought``.
    varies_answers: the choice of answer tokens, ``next_tokens``.

    own_prompts: whether every sample reads the prompt on its own. changes_prompt_start: whether
    this reading differs before the first residual dropout (see PromptStart in src.models.decoder).
    compiles: whether the hooks can be part of a compiled step.
    """

    strength = None
    varies_passes = varies_thoughts = varies_answers = False
    own_prompts = changes_prompt_start = False
    compiles = True

    @property
    def active(self):
        return getattr(self, self.strength) > 0

    def prepare(self, model):
        """Computes what the hooks need of a model, before its first pass."""

    def pass_hook(self, model, rng_keys, steps):
        """The PassHook of a pass over prompts or thoughts: rng_keys (R,), steps (R, S)."""
        return NO_HOOK

    def answer_hook(self, model, rng_keys, steps, num_thoughts=None):
        """The PassHook of a pass over the answer.

        num_thoughts (R,): where the pass starts with the last thought, the step of this thought.
        """
        return NO_HOOK

    def next_thought(self, thought, rng_keys, step):
        """The thoughts (R, D) that are fed back at ``step``, an int or (R,), in place of these."""
        return thought

    def next_tokens(self, model, hidden, rng_keys, steps):
        """The next answer tokens (R,) at hidden states (R, D), which were read at steps (R,)."""
        raise NotImplementedError


class PassHook:
    """Hooks into one forward pass (src.models.decoder); this one changes nothing.

    x, out (R, S, D): the residual stream, and the output of a block's attention or MLP.
    """

    with_embedding = with_attention = False

    def for_layers(self, count):
        """The hook of one forward pass through so many layers."""
        return self

    def output(self, out, layer, site):
        """``out`` as it is added to the residual stream. site: ATTENTION or MLP."""
        return out

    def add(self, x, out, layer, site):
        """x + output(out, layer, site)."""
        return x + out

    def embedding(self, x):
        """The sum of token (or thought) and position embedding as it is read."""
        return x

    def attention(self, layer):
        """A function that drops attention weights of a layer, or None: they are not dropped.

        See DropoutMasks.drop_weights.
        """
        return None

    def linear(self, layer):
        """A function change(target, x) of a layer, or None: its linear maps are as they are.

        It gives what is added to the output of the linear map ``target``, one of TARGETS, at inputs
        x (R, S, I); None where nothing is.
        """
        return None

    def at(self, index):
        """The hook for chosen positions only, an index pair into (R, S)."""
        return self


NO_HOOK = PassHook()


@dataclass
class MixedHook(PassHook):
    """Several hooks, applied in order."""

    hooks: list

    @property
    def with_embedding(self):
        return any(hook.with_embedding for hook in self.hooks)

    @property
    def with_attention(self):
        return any(hook.with_attention for hook in self.hooks)

    def for_layers(self, count):
        return MixedHook([hook.for_layers(count) for hook in self.hooks])

    def add(self, x, out, layer, site):
        *first, last = self.hooks
        for hook in first:
            out = hook.output(out, layer, site)
        return last.add(x, out, layer, site)

    def embedding(self, x):
        for hook in self.hooks:
            x = hook.embedding(x)
        return x

    def attention(self, layer):
        functions = [f for f in (hook.attention(layer) for hook in self.hooks) if f is not None]

        def drop(weights, part):
            for function in functions:
                weights = function(weights, part)
            return weights

        return drop if functions else None

    def linear(self, layer):
        functions = [f for f in (hook.linear(layer) for hook in self.hooks) if f is not None]

        def change(target, x):
            changes = [c for c in (function(target, x) for function in functions) if c is not None]
            return sum(changes[1:], changes[0]) if changes else None

        return change if functions else None

    def at(self, index):
        return MixedHook([hook.at(index) for hook in self.hooks])


def mixed(hooks):
    """One hook for those of ``hooks`` that do something."""
    hooks = [hook for hook in hooks if hook is not NO_HOOK]
    if len(hooks) > 1:
        return MixedHook(hooks)
    return hooks[0] if hooks else NO_HOOK


def check_strength(name, value):
    """Raises ValueError unless ``value`` is a number >= 0."""
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be a number >= 0, not {value}")


def check_target(name, value):
    """Raises ValueError unless ``value`` is one of TARGETS."""
    if value not in TARGETS:
        raise ValueError(f"{name} must be one of {', '.join(TARGETS)}, not {value!r}")
