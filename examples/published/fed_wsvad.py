"""Fed_WSVAD (IEEE TII 2025, doi 10.1109/TII.2025.3574406): a detector on frozen features, averaged by Flower.

Read: the abstract; Fed_VAD/client_pytorch.py, server.py, model.py and losses.py of the repository. A client
sends all weights after 10 passes of Adam over its pairs of bags, without noise or clipping.
"""

from recipe import Recipe
from torch import Tensor, nn

import vleak
from vleak.defenses import NoDefense


class ChannelMean(nn.Module):
    """Detector of the mean channel: a square layer, dropout, scores, and the mean of their top sixth."""

    def __init__(self, segments: int, features: int, outputs: int | None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, features)
        self.dropout = nn.Dropout(0.75)
        self.classifier1 = nn.Linear(features, 1)

    def forward(self, bags: Tensor) -> Tensor:
        scores = self.classifier1(self.dropout(self.fc1(bags).relu())).sigmoid()
        return scores.topk(-(-scores.shape[1] // 6), dim=1).values.mean(1, keepdim=True)


RUN = {
    "pipeline": "feature",
    "head": vleak.named("channel_mean", ChannelMean),
    "loss": "bce",
    "mode": "train",
}
RUN |= {"batch": 2, "local_epochs": 10, "local_rate": 1e-4, "local_decay": 5e-4, "local_optimizer": "adam"}
RECIPES = {"Fed_WSVAD": Recipe(NoDefense(), RUN)}
