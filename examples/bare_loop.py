"""Train one of our models in a loop of your own: `python examples/bare_loop.py gan` (or vae, pixelcnn, ddpm)."""

import sys
from itertools import islice

from imago.data.module import ImageDataModule
from imago.data.sources.digits import Digits
from imago.models.diffusion import Diffusion
from imago.models.gan import GAN
from imago.models.pixelcnn import PixelCNN
from imago.models.vae import VAE

data = ImageDataModule(Digits())
data.prepare()
model = {"gan": GAN, "vae": VAE, "pixelcnn": PixelCNN, "ddpm": Diffusion}[sys.argv[1]](data.spec)
optimizers = dict(zip(model.networks, model.configure_optimizers(), strict=True))
for batch in islice(data.train_dataloader(), int(sys.argv[2]) if len(sys.argv) > 2 else None):
    for loss in model.losses(batch):
        optimizers[loss.network].zero_grad()
        loss.value.backward()
        optimizers[loss.network].step()
print(f"{model.state.images} images, {loss.network}: {loss.value.item():.3f}; {tuple(model.sample(4, seed=0).shape)}")
