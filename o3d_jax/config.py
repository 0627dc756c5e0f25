"""Configuration: frozen dataclasses, one file per experiment in `configs/`.

The defaults are the paper's; fields without a comment are sizes of the original networks.
A contradiction is an error when the config is made, not an hour later.

This file is longer than others here may be. It is the one page that says all that can be set, which
people read and `--help` prints; split by network, no part could be checked against another.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


def require(holds: bool, message: str) -> None:
    """Raises a ValueError with the message (field, value, remedy) unless something holds."""
    if not holds:
        raise ValueError(message)


def _at_least(low: int, where: str, config: Any, *names: str) -> None:
    """Requires that each of these fields, or each of its values, is at least `low`."""
    for name in names:
        value = getattr(config, name)
        for each in value if isinstance(value, tuple) else (value,):
            require(each >= low, f"{where}.{name} {value} must be at least {low}")


def _groups_divide(where: str, groups: int, *channels: tuple[int, ...]) -> None:
    for value in (c for several in channels for c in several):
        require(
            groups > 0 and value % groups == 0,
            f"{where}.norm_num_groups {groups} does not divide {value} channels",
        )


@dataclass(frozen=True)
class VaeConfig:
    """SVD's image encoder and temporal decoder."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    """Channels per resolution; the image is halved between two of them."""
    layers_per_block: int = 2
    latent_channels: int = 4
    patch: int = 1
    """Latents along a side that the U-Net reads as one, with as many channels as all of them have
    (as transformers for diffusion do); 1: each by itself, as SVD's."""
    norm_num_groups: int = 32
    mid_attention: Literal["between", "always"] = "between"
    """Where the decoder's middle attends: between its first two blocks, its last, so with one layer
    a block never, as in diffusers; or after the first of as many as there are layers."""
    scaling_factor: float = 0.18215
    """Makes the standard deviation of latents about 1 (SVD's config)."""

    def __post_init__(self) -> None:
        _at_least(1, "model.vae", self, "block_out_channels", "layers_per_block")
        _at_least(1, "model.vae", self, "latent_channels", "patch")
        _groups_divide("model.vae", self.norm_num_groups, self.block_out_channels)
        require(
            self.scaling_factor > 0,
            f"model.vae.scaling_factor {self.scaling_factor} must be above 0",
        )

    @property
    def downscale(self) -> int:
        """Pixels per latent as the U-Net reads them, along one axis."""
        return self.patch * 2 ** (len(self.block_out_channels) - 1)

    @property
    def channels(self) -> int:
        """Channels of latents as the U-Net reads them."""
        return self.latent_channels * self.patch**2


@dataclass(frozen=True)
class UnetConfig:
    """SVD's spatio-temporal U-Net with camera rays and feedback (Secs. 3.1, 3.3)."""

    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    """Channels per scale; also those of the feedback encoders (Table 3)."""
    layers_per_block: int = 2
    num_attention_heads: tuple[int, ...] = (5, 10, 20, 20)
    """Per scale; the last scale has attention in the middle block only."""
    addition_time_embed_dim: int = 256
    """Features of the sinusoid of each of the three added ids."""
    norm_num_groups: int = 32
    feedback: Literal["none", "ccm", "rgb+ccm"] = "rgb+ccm"
    """Which rendered maps are fed back: the rows of Table 2."""
    feedback_blocks: int = 3
    """Residual blocks per scale in a feedback encoder (Table 3)."""
    ray_octaves: int = 6
    """Frequencies 2^0 .. 2^(n-1) in the harmonic embedding of the Pluecker rays."""
    ray_convention: Literal["geometric", "released"] = "geometric"
    """Whether cameras are given by their true rays or by those of the release's formula."""
    ccm_convention: Literal["paper", "released"] = "paper"
    """Coordinates that are fed back: the world's (App. A.2), or those of the release's formula."""
    temporal_context: Literal["per_video", "interleaved"] = "per_video"
    """Whose image embedding tokens across frames attend to in sampling: that of their own video,
    or, as in diffusers 0.25, which the release pins, every second one that of the other half of the
    guided batch. In training, of one object at a time there, always their own."""
    feedback_scale4: Literal["after_mid", "encoder"] = "after_mid"
    """Where the features of the fourth scale enter: behind the middle block, as in the release, or
    at the end of the encoder, as the words of Sec. 3.3 have it; both are of one resolution."""

    def __post_init__(self) -> None:
        _at_least(1, "model.unet", self, "block_out_channels", "layers_per_block")
        _at_least(1, "model.unet", self, "num_attention_heads", "addition_time_embed_dim")
        _at_least(0, "model.unet", self, "feedback_blocks", "ray_octaves")
        _groups_divide("model.unet", self.norm_num_groups, self.block_out_channels)
        require(
            len(self.num_attention_heads) == len(self.block_out_channels),
            f"model.unet.num_attention_heads {self.num_attention_heads} needs one value for each "
            f"of the {len(self.block_out_channels)} scales",
        )
        for heads, channels in zip(self.num_attention_heads, self.block_out_channels, strict=True):
            require(
                channels % heads == 0,
                f"model.unet.num_attention_heads {self.num_attention_heads}: {heads} does not "
                f"divide {channels} channels",
            )


@dataclass(frozen=True)
class ClipConfig:
    """CLIP's image tower; the default is ViT-H/14."""

    hidden_size: int = 1280
    intermediate_size: int = 5120
    num_hidden_layers: int = 32
    num_attention_heads: int = 16
    projection_dim: int = 1024
    patch_size: int = 14
    image_size: int = 224
    """Pixels; images of another size are resized inside."""

    def __post_init__(self) -> None:
        _at_least(1, "model.clip", self, "hidden_size", "num_hidden_layers", "num_attention_heads")
        _at_least(1, "model.clip", self, "projection_dim", "patch_size", "image_size")
        require(
            self.hidden_size % self.num_attention_heads == 0,
            f"model.clip.num_attention_heads {self.num_attention_heads} does not divide "
            f"hidden_size {self.hidden_size}",
        )
        require(
            self.image_size % self.patch_size == 0,
            f"model.clip.patch_size {self.patch_size} does not divide image_size {self.image_size}",
        )


@dataclass(frozen=True)
class LgmConfig:
    """LGM's asymmetric U-Net (its "big" configuration) with a time embedding (Sec. 3.2)."""

    input_size: int = 256
    """Pixels of the views it reads; its Gaussians lie on a grid of this size, halved as often as
    there are more down than up blocks."""
    num_views: int = 4
    """Views it reads, evenly spaced among those generated."""
    down_channels: tuple[int, ...] = (64, 128, 256, 512, 1024, 1024)
    down_attention: tuple[bool, ...] = (False, False, False, True, True, True)
    mid_attention: bool = True
    up_channels: tuple[int, ...] = (1024, 1024, 512, 256, 128)
    up_attention: tuple[bool, ...] = (True, True, True, False, False)
    layers_per_block: int = 2
    num_heads: int = 16
    norm_num_groups: int = 32
    time_features: int = 128
    """Sinusoid features of c_noise; the embedding is four times as wide."""
    rotation_norm: Literal["per_gaussian", "over_gaussians"] = "per_gaussian"
    """Over what quaternions are normalized: each by itself, as in LGM's "fixrot" weights, or, as in
    its first weights and the release, each component over all Gaussians of an object. The latter
    are drawn as they are, so nearly unrotated."""
    culling: Literal["exact", "inria"] = "exact"
    """Which pixels one of its Gaussians is drawn in: all with alpha >= 1/255, or, as in the CUDA
    original, those in the tiles within 3 standard deviations."""
    colors: Literal["free", "pixel"] = "free"
    """What raw colors are relative to: "free" is gray, as in LGM; "pixel" the mean color of the
    pixels that a Gaussian's place in the grid covers, from which a fresh network learns faster."""
    positions: Literal["free", "ray"] = "free"
    """What raw positions are relative to: "free" is the world's origin, as in LGM; "ray" the point
    of the pixel's ray that is nearest to it, from which a fresh network learns faster."""

    def __post_init__(self) -> None:
        _at_least(1, "model.lgm", self, "input_size", "num_views", "down_channels", "up_channels")
        _at_least(1, "model.lgm", self, "layers_per_block", "num_heads", "time_features")
        _groups_divide("model.lgm", self.norm_num_groups, self.down_channels, self.up_channels)

        # Attention is a choice for each block, and splits its channels among the heads.
        for side in ("down", "up"):
            channels, attention = (getattr(self, f"{side}_{x}") for x in ("channels", "attention"))
            require(
                len(channels) == len(attention),
                f"model.lgm.{side}_attention {attention} needs one value for each of the "
                f"{len(channels)} {side}_channels",
            )
            for c, mixes in zip(channels, attention, strict=True):
                require(
                    not mixes or c % self.num_heads == 0,
                    f"model.lgm.num_heads {self.num_heads} does not divide {c} channels",
                )
        require(
            len(self.up_channels) <= len(self.down_channels),
            f"model.lgm.up_channels {self.up_channels} are more than down_channels",
        )

        halvings = len(self.down_channels) - 1
        require(
            self.input_size % 2**halvings == 0,
            f"model.lgm.input_size {self.input_size} is not a multiple of {2**halvings}: it is "
            f"halved {halvings} times",
        )


@dataclass(frozen=True)
class ModelConfig:
    """All networks, and the sizes they share."""

    image_size: int = 512
    """Pixels, width and height of all views (Sec. 4.1)."""
    num_views: int = 8
    """Generated views f (Sec. 3.1)."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """What networks but LPIPS compute in; all else is float32: parameters, geometry, losses."""
    remat: bool = True
    """Recompute each block in the backward pass rather than store it."""
    remat_keeps: Literal["nothing", "dots", "dots_no_batch"] = "nothing"
    """What of a recomputed block is stored after all: nothing, the results of all its matrix
    products (of convolutions none), or of those without a batch axis."""
    vae_chunk: int = 0
    """Objects that the VAE encodes or decodes at a time, to save memory; 0: all of a device."""
    vae: VaeConfig = VaeConfig()
    unet: UnetConfig = UnetConfig()
    clip: ClipConfig = ClipConfig()
    lgm: LgmConfig = LgmConfig()

    def __post_init__(self) -> None:
        _at_least(1, "model", self, "image_size", "num_views")
        _at_least(0, "model", self, "vae_chunk")
        multiple = self.vae.downscale * 2 ** (len(self.unet.block_out_channels) - 1)
        require(
            self.image_size % multiple == 0,
            f"model.image_size {self.image_size} is not a multiple of {multiple}: the VAE "
            f"divides it by {self.vae.downscale}, the U-Net halves it "
            f"{len(self.unet.block_out_channels) - 1} more times",
        )
        require(
            self.num_views % self.lgm.num_views == 0,
            f"model.num_views {self.num_views} is not a multiple of model.lgm.num_views "
            f"{self.lgm.num_views}: the views it reads are evenly spaced",
        )

    @property
    def latent_size(self) -> int:
        """Latents along one side of a view."""
        return self.image_size // self.vae.downscale


@dataclass(frozen=True)
class CameraConfig:
    """The orbit all views lie on: LGM's (the paper is silent, the release has 1.74 and 39.6)."""

    radius: float = 1.5
    """Distance of the cameras from the origin, scene units."""
    fov: float = 49.1
    """Field of view, degrees, both ways (square images)."""

    def __post_init__(self) -> None:
        require(self.radius > 0, f"camera.radius {self.radius} must be above 0")
        require(0 < self.fov < 180, f"camera.fov {self.fov} must be between 0 and 180 degrees")


@dataclass(frozen=True)
class DataConfig:
    """Where training orbits come from."""

    source: Literal["synthetic", "rendered", "mixed"] = "synthetic"
    """Objects made by `data/toys/seeded.py`, those of `rendered`, or both."""
    rendered: tuple[str, ...] = ()
    """Folders of orbits: what `o3d data render` or `o3d data build` wrote."""
    shares: tuple[float, ...] = ()
    """How the sources are mixed: of the synthetic objects if "mixed", then of each of `rendered`.
    Any numbers above 0; their sum does not matter. Empty: all alike."""
    ids: Path | None = None
    """File of objects, one id a line; only these are taken from `rendered`. None: all."""
    heldout: Path | None = None
    """Folder of orbits for evaluations during training, evenly spaced among its names; of objects,
    by name, that are not trained on. None: synthetic ones of seeds from 2^30 on, which never are.
    Where `source` is "mixed", the first half are such all the same."""
    objects: int = 80_000
    """Distinct synthetic objects in the training set (Sec. 4.1: around 80K)."""
    seed: int = 0
    """First object seed; object i has seed + i. Seeds from 2^30 on are held out."""
    frames_per_orbit: int = 16
    """Frames of a rendered orbit (Sec. 4.1)."""
    orbit_frames: Literal["every_second", "linspace"] = "every_second"
    """Which of them make a sample: every 2nd from the first (Sec. 4.1), or, as in the release, as
    many as views from the first to the last, evenly spaced and rounded down."""
    resize_filter: Literal["area", "bicubic"] = "area"
    """How rendered frames are reduced to model.image_size: by the mean over each pixel, or by
    Pillow's bicubic filter (release)."""
    blending: Literal["display", "linear"] = "display"
    """In which values frames are laid over white: those of the file (release), or in linear light,
    as a camera would."""
    mirror: bool = False
    """Whether half of the training samples, by chance, are seen in a mirror."""
    recolor: bool = False
    """Whether each training sample gets other colors, the same in all its views: hues turned by a
    random angle, channels in a random order."""
    elevation: tuple[float, float] = (-5.0, 30.0)
    """Range of orbit elevations, degrees (Sec. 4.1)."""
    cache: Path | None = None
    """Folder that keeps rendered orbits between runs; None renders them anew."""
    workers: int = 1
    """Threads that render ahead of training."""

    def __post_init__(self) -> None:
        _at_least(1, "data", self, "objects", "frames_per_orbit", "workers")
        _at_least(0, "data", self, "seed")
        low, high = self.elevation
        require(
            -90 < low <= high < 90,
            f"data.elevation {self.elevation} must rise, within -90 .. 90 degrees",
        )
        require(
            not (self.mirror and self.orbit_frames == "linspace"),
            "data.mirror needs data.orbit_frames every_second: a mirrored orbit runs backwards, "
            "and only evenly spaced views of a whole circle have the same azimuths both ways",
        )

        # Whoever names folders means them to be used, and the other way round.
        require(
            bool(self.rendered) == (self.source != "synthetic"),
            f"data.source {self.source!r} does not go with data.rendered {self.rendered}; give "
            'folders of orbits and "rendered" or "mixed", or neither',
        )
        require(
            len(self.shares) in (0, self.source_count) and all(s > 0 for s in self.shares),
            f"data.shares {self.shares} must be {self.source_count} numbers above 0, one for each "
            "source, or none",
        )

    @property
    def source_count(self) -> int:
        """How many sources are mixed."""
        return len(self.rendered) + (self.source != "rendered")


@dataclass(frozen=True)
class DiffusionConfig:
    """EDM constants (App. A.1) and the release's conditioning (SVD's fine-tuning recipe)."""

    p_mean: float = 1.0
    """Mean of log sigma in training (App. A.1)."""
    p_std: float = 1.6
    """Standard deviation of log sigma in training (App. A.1)."""
    condition_p_mean: float = -3.0
    """Mean of log sigma of the noise on the condition image (release)."""
    condition_p_std: float = 0.5
    """Its standard deviation (release)."""
    condition_dropout: float = 0.1
    """Probability of each of: no embedding, no latents, neither (release)."""
    feedback_probability: float = 0.5
    """Probability that a training step uses feedback (Algorithm 1)."""
    feedback_gradient: Literal["stopped", "flows"] = "stopped"
    """Whether the diffusion loss reaches LGM through the feedback: not in Algorithm 1, which
    detaches it, but in the release."""
    clip_sees_noise_in_training: bool = False
    """Whether the noise on the condition image is on the image tower's input, too (release)."""
    training_latents: Literal["mode", "sampled"] = "mode"
    """What latents are in training: the mode of the VAE's posterior, or (release) drawn from it."""
    fps: int = 7
    """SVD's frames per second; the network is given fps - 1."""
    motion_bucket: int = 127
    """SVD's motion bucket id."""

    def __post_init__(self) -> None:
        for name, most in (("feedback_probability", 1), ("condition_dropout", 1 / 3)):
            value = getattr(self, name)
            require(0 <= value <= most, f"diffusion.{name} {value} is not in 0 .. {most:.2g}")
        _at_least(0, "diffusion", self, "p_std", "condition_p_std")


@dataclass(frozen=True)
class SampleConfig:
    """Algorithm 2 (Sec. 4.1)."""

    levels: int = 25
    """Noise levels (Sec. 4.1: 25)."""
    solver: Literal["euler", "heun"] = "euler"
    """Solver of the ODE between two levels, Eq. 3; all but Euler are diffrax's."""
    sigma_min: float = 0.002
    """Lowest level (SVD's scheduler)."""
    sigma_max: float = 700.0
    """Highest level (SVD's scheduler); small images need less, because noise covers them sooner."""
    min_guidance: float = 1.0
    """Classifier-free guidance of view 0; rises linearly over the views."""
    max_guidance: float = 3.0
    """Guidance of the last view."""
    condition_noise: float = 0.02
    """Standard deviation of the noise on the condition image, and the id that says so (release)."""
    feedback: bool = True
    """False keeps G = 0 at all levels: the ablation of the benchmark table."""
    reconstruct_every: int = 1
    """Every how many levels, from the first on, an object is made of the views; always at the last.
    At the others nothing is decoded, and the feedback stays as it was, which spares half of a
    level's work (release: recon_every_n_steps)."""

    def __post_init__(self) -> None:
        require(
            0 < self.sigma_min < self.sigma_max,
            f"sample.sigma_min {self.sigma_min} must be above 0 and below sample.sigma_max "
            f"{self.sigma_max}",
        )
        _at_least(2, "sample", self, "levels")
        _at_least(1, "sample", self, "reconstruct_every")
        _at_least(0, "sample", self, "condition_noise")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW (Sec. 4.1), or Muon in its place."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """Muon makes a kernel's update near an orthogonal matrix of in x out, keeps half of AdamW's
    state for it, and leaves all else to AdamW with Nesterov's momentum. Updates are scaled to be as
    large as AdamW's."""
    learning_rate: float = 1e-5
    """Peak (Sec. 4.1: 1e-5)."""
    schedule: Literal["constant", "cosine"] = "constant"
    """What follows the warm-up; cosine falls to a twentieth of the peak."""
    warmup_steps: int = 0
    """Steps over which the rate rises to its peak."""
    weight_decay: float = 0.01
    """torch's default, which the release uses."""
    first_moment: Literal["float32", "bfloat16"] = "float32"
    """Type in which the running mean of gradients is kept; bfloat16 saves an eighth of
    AdamW's state. The mean of their squares stays float32: it moves by 0.1 % a step, which bfloat16
    rounds away."""
    clip_norm: float = 1.0
    """Maximum norm of the gradient (Sec. 4.1)."""
    ema_decay: float = 0.999
    """Per step; ramps up as (1 + step) / (10 + step) at the start."""
    reconstruction_loss: Literal["mse", "l1"] = "mse"
    """Distance of colors: mean square (Eq. 2), or mean absolute error (release)."""
    lpips_weight: float = 1.0
    """Lambda in Eq. 2; 0 switches the perceptual loss off."""
    lpips_size: int = 256
    """Pixels to which larger views are reduced for LPIPS, to save memory (release: not at all)."""
    lpips_network: Literal["vgg", "alex"] = "vgg"
    """Whose features LPIPS compares: VGG16's (paper), or AlexNet's (release)."""
    alpha_weight: float = 0.0
    """Weight of the mean square error of the renders' alpha (LGM's own training: 1)."""
    ssim_weight: float = 0.0
    """Weight of 1 - SSIM of the renders, a loss of structure that needs no weights; 0.02 made
    `nano`'s LGM better in PSNR as well."""
    noisy_weight: float = 1.0
    """Weight of the reconstruction loss on noisy views (release: 0.5)."""
    clean_weight: float = 1.0
    """Weight of the reconstruction loss on clean views (Sec. 3.2: equal; release: 0.5)."""

    def __post_init__(self) -> None:
        _at_least(0, "optim", self, "learning_rate", "warmup_steps", "weight_decay")
        _at_least(0, "optim", self, "lpips_weight", "alpha_weight", "ssim_weight")
        _at_least(0, "optim", self, "noisy_weight", "clean_weight")
        _at_least(31, "optim", self, "lpips_size")  # Of fewer, AlexNet's last layer sees nothing.
        require(self.clip_norm > 0, f"optim.clip_norm {self.clip_norm} must be above 0")
        require(0 <= self.ema_decay < 1, f"optim.ema_decay {self.ema_decay} is not in 0 .. 1")

    @property
    def lpips_loss(self) -> Literal["vgg", "alex"] | None:
        """The network of the perceptual loss, if there is one."""
        return self.lpips_network if self.lpips_weight > 0 else None


@dataclass(frozen=True)
class TrainConfig:
    """How long, how much, how often."""

    part: Literal["joint", "vae", "lgm", "unet"] = "joint"
    """What trains: denoiser and LGM jointly (Algorithm 1), or one network by itself, for models
    that have no weights to start from, in this order: "vae"; "lgm" on true views; "unet" without
    feedback. What a part leaves in run_dir/name/PART is what later parts start from."""
    steps: int = 30_000
    """Optimizer steps (Sec. 4.1)."""
    batch_size: int = 32
    """Objects per step over all devices (Sec. 4.1)."""
    accumulate: int = 1
    """Parts into which a device splits its objects; their gradients are added up, one after
    another, in the memory of one."""
    fsdp: int = 0
    """Devices that share one copy of the state; the others hold further copies. 0: all devices."""
    zero: Literal[0, 1, 2, 3] = 2
    """What these share out, by ZeRO's stages: 0 nothing, 1 optimizer and average, 2 gradients too
    (Sec. 4.1), 3 parameters too, trainable and frozen."""
    smallest_shared: int = 2**18
    """Elements of the smallest array that is shared out: less is cheaper to keep than to gather."""
    offload_optimizer: bool = False
    """Keep the optimizer's moments, of AdamW two numbers a parameter, in the host's memory, and
    bring them to the device for the update alone, when nothing of the forward and backward pass is
    there any more: slower, for devices that cannot hold all of it. Arrays below `smallest_shared`
    stay."""
    log_every: int = 50
    """Steps between log lines, which are means over them."""
    eval_every: int = 1_000
    """Steps between evaluations: figures of held-out objects, and a picture of the first ones."""
    eval_objects: int = 4
    """Held-out objects in an evaluation."""
    sample_every: int = 0
    """Steps between evaluations in joint training that sample, too, which takes long; a multiple of
    eval_every. 0: all do."""
    save_every: int = 1_000
    """Steps between checkpoints."""
    keep: int = 3
    """Checkpoints kept."""
    most_skipped: int = 10
    """Steps in a row whose loss or gradient is not finite, and which therefore change nothing,
    after which a run ends."""
    trackers: tuple[Literal["wandb", "trackio"], ...] = ()
    """Services that get the log as well; each is a package to install."""
    train_image_encoder: bool = False
    """Train the image tower along; for models with no CLIP weights to load."""

    def __post_init__(self) -> None:
        _at_least(1, "train", self, "steps", "batch_size", "accumulate", "log_every", "eval_every")
        _at_least(1, "train", self, "eval_objects", "save_every", "keep", "most_skipped")
        _at_least(0, "train", self, "fsdp", "smallest_shared", "sample_every")
        require(
            self.sample_every % self.eval_every == 0,
            f"train.sample_every {self.sample_every} is not a multiple of train.eval_every "
            f"{self.eval_every}",
        )


@dataclass(frozen=True)
class LaunchConfig:
    """Several processes: found out by themselves on TPU pods, SLURM, Open MPI 4 and Kubernetes."""

    coordinator: str | None = None
    """HOST:PORT of process 0, where nothing says so."""
    processes: int | None = None
    """How many there are."""
    cpu_devices: int = 0
    """Devices to make of the processor's cores, of one thread each; 0: one of all of them."""
    process_id: int | None = None
    """Which of them this is, from 0."""
    timeout: int = 300
    """Seconds to wait for the others."""
    grace: int = 20
    """Seconds after a signal for several processes to come out of a compilation or an evaluation
    and end together; then each ends by itself. To be less than the scheduler's."""

    def __post_init__(self) -> None:
        given = [x is not None for x in (self.coordinator, self.processes, self.process_id)]
        require(
            all(given) or not any(given),
            "launch.coordinator, launch.processes and launch.process_id go together; give all "
            "three or none",
        )
        _at_least(1, "launch", self, "timeout")
        _at_least(0, "launch", self, "grace", "cpu_devices")
        if self.processes is not None and self.process_id is not None:
            require(
                0 <= self.process_id < self.processes,
                f"launch.process_id {self.process_id} is not in 0 .. launch.processes - 1 "
                f"({self.processes - 1})",
            )


@dataclass(frozen=True)
class Config:
    """One experiment."""

    name: str
    seed: int = 0
    model: ModelConfig = ModelConfig()
    camera: CameraConfig = CameraConfig()
    data: DataConfig = DataConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    sample: SampleConfig = SampleConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    launch: LaunchConfig = LaunchConfig()
    profile: tuple[int, int] | None = None
    """First step and number of steps to record for XProf and TensorBoard, in run_dir/name."""
    weights: Path | None = None
    """Checkpoint to start from: its frozen networks, and those trainable ones it has. None: what
    trainings of single parts (`train.part`) left in run_dir/name, else from scratch."""
    run_dir: Path = field(default_factory=lambda: Path("runs"))
    """Checkpoints, logs and pictures go to run_dir/name."""

    @property
    def folder(self) -> Path:
        """Where this run writes: run_dir/name, or for the training of one part a folder in it."""
        whole = self.run_dir / self.name
        return whole if self.train.part == "joint" else whole / self.train.part

    def __post_init__(self) -> None:
        require(
            self.name == Path(self.name).name and self.name not in ("", ".."),
            f"name {self.name!r} must be the name of a folder in run_dir",
        )
        require(0 <= self.seed < 2**32, f"seed {self.seed} is not in 0 .. 2^32 - 1")

        # Frames of an orbit and views of a model: the two meet here for the first time.
        require(
            self.data.frames_per_orbit >= 2 * self.model.num_views,
            f"data.frames_per_orbit {self.data.frames_per_orbit} is less than twice "
            f"model.num_views {self.model.num_views}: training takes every 2nd frame (Sec. 4.1)",
        )
        require(
            not self.data.mirror or self.data.frames_per_orbit == 2 * self.model.num_views,
            f"data.mirror needs data.frames_per_orbit {self.data.frames_per_orbit} to be twice "
            f"model.num_views {self.model.num_views}: a mirrored orbit runs backwards, and only a "
            "whole circle has the same azimuths both ways",
        )

        require(
            self.optim.schedule != "cosine" or self.optim.warmup_steps < self.train.steps,
            f"optim.warmup_steps {self.optim.warmup_steps} leaves nothing of train.steps "
            f"{self.train.steps} for the cosine schedule; lower it",
        )

        require(
            self.train.batch_size % max(self.train.fsdp, 1) == 0,
            f"train.batch_size {self.train.batch_size} is not a multiple of train.fsdp "
            f"{self.train.fsdp}",
        )
        require(
            self.train.batch_size % self.train.accumulate == 0,
            f"train.batch_size {self.train.batch_size} is not a multiple of train.accumulate "
            f"{self.train.accumulate}",
        )

        require(
            self.profile is None or (self.profile[0] >= 0 and self.profile[1] >= 1),
            f"profile {self.profile} must be a first step from 0 on and at least 1 step",
        )


def to_dict(config: Config) -> dict[str, Any]:
    """Returns the config as plain JSON values."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (tuple, list)):
            return [plain(item) for item in value]
        return value

    return plain(dataclasses.asdict(config))
