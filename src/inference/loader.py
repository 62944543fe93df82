"""The models of a run, loaded once for all runs of a sweep."""

from src.models.loading import load_backbone, load_reward_model


class Loader:
    """Loads models onto one device and keeps the last of each kind: the next run of a sweep wants it too."""

    def __init__(self, device):
        self.device = device
        self._kept = {}  # kind: (what was asked for, what was loaded)

    def backbone(self, settings):
        """The backbone of some settings and its tokenizer."""
        asked = (settings.model_type, settings.model_id, settings.model_dtype)
        return self._once("backbone", asked, lambda: load_backbone(*asked, self.device))

    def reward_model(self, settings):
        """The LatentRM of some settings, after it is found to suit their backbone."""
        backbone = self.backbone(settings)
        asked = (settings.prm_id, settings.model_dtype, id(backbone[0]))
        return self._once(
            "reward model",
            asked,
            lambda: load_reward_model(settings.prm_id, *backbone, settings.model_dtype, self.device),
        )

    def _once(self, kind, asked, load):
        if self._kept.get(kind, (None,))[0] != asked:
            self._kept.pop(kind, None)  # before the next one takes memory
            self._kept[kind] = (asked, load())
        return self._kept[kind][1]
