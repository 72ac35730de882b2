"""The parts of a diffusion model that are not learned, or only say what the network's output means.

Three words carry it. The *process* destroys an image step by step and is known in closed form (:mod:`.process`, its
speed in :mod:`.schedules`). The *network* guesses what was destroyed; what it is asked for, how that is weighed and
which variance goes with it are :mod:`.predictions`, :mod:`.losses` and :mod:`.variances`. A *sampler*
(:mod:`.samplers`) walks back. Any of each goes with any of the others; :mod:`imago.models.diffusion` joins them.
"""
