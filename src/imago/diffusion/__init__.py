"""What a diffusion model does not learn, or what its network's output means.

A *noise schedule* t ↦ (α, σ) destroys an image, x_t = α x_0 + σ ε with t from 0 to 1 (:mod:`.schedules`). A *network*
estimates what was destroyed; what it is asked for is a *prediction* (:mod:`.predictions`), how its errors are weighted
a *loss* (:mod:`.losses`), how uncertain a step back is a *variance* (:mod:`.variances`). A *sampler* steps from t = 1
to t = 0 (:mod:`.samplers`). Any of each goes with any of the others; :mod:`imago.models.denoiser` joins them.
"""
