"""Draw triples from a model, train it with SSO on them, save it: seconds on a CPU, without a network.

`python examples/train_sso.py [CHECKPOINT]`; without one a tiny untrained model is made on the spot.
"""

import sys
import tempfile
from pathlib import Path

from sso import SSOConfig, SSOTrainer, generate_triples
from sso.sampling.settings import Sampling
from sso.settings import Backbone
from sso.train.run import save
from sso.worlds.micro.models import build

out = Path(tempfile.mkdtemp())
model = sys.argv[1] if len(sys.argv) > 1 else out / "start"
if len(sys.argv) == 1:
    save(*build(Backbone(architecture="qwen2", layers=2), seed=0), out / "start")

prompts = [f"Solve x plus {i} is {i + 7}." for i in range(8)]
sampling = Sampling(max_new_tokens=32, dtype="float32")
triples = generate_triples(model, prompts, principles="v1", sampling=sampling, seed=0)
args = SSOConfig(f"{out}/run", per_device_train_batch_size=4, learning_rate=1e-3, num_train_epochs=4, bf16=False)
trainer = SSOTrainer(model, args, train_dataset=triples)
trainer.train()
trainer.save_model(out / "trained")
print(f"{len(triples)} triples, {trainer.state.global_step} steps: {out}/trained")
