"""Prunes trained neural networks by convex optimisation (Net-Trim), in JAX."""

from nettrim_jax import files, methods, plots, results, structure, training
from nettrim_jax.bounds.normal_form import Normalized, link_normalize
from nettrim_jax.convex import penalties
from nettrim_jax.convex.admm import history, solve
from nettrim_jax.convex.build import clip_program, linear_program, relu_program
from nettrim_jax.convex.config import ADMM
from nettrim_jax.convex.cvxpy import to_cvxpy
from nettrim_jax.convex.entrywise import (
    L1,
    Box,
    ElasticNet,
    FixedPattern,
    Nonnegative,
    Sign,
)
from nettrim_jax.convex.groups import GroupL1, SparseGroup
from nettrim_jax.convex.path import Path, path
from nettrim_jax.convex.programs import Program
from nettrim_jax.convex.solution import Certificate, History, Solution, Stats
from nettrim_jax.files.contents import describe
from nettrim_jax.files.reading import load
from nettrim_jax.files.writing import save
from nettrim_jax.methods import patterns
from nettrim_jax.methods.codes import Codes
from nettrim_jax.methods.criteria import L2, APoZ, MeanActivation, NonZeros
from nettrim_jax.methods.joint import Joint
from nettrim_jax.methods.layerobs import LayerOBS
from nettrim_jax.methods.nettrim import NetTrim
from nettrim_jax.methods.obs import OBS
from nettrim_jax.methods.patterns import NM, Blocks, Inputs, Neurons, Sparsity
from nettrim_jax.methods.reconstruct import Reconstruct
from nettrim_jax.methods.rules import Magnitude, Random, Wanda
from nettrim_jax.methods.second_order import OBD, Fisher, Saliency
from nettrim_jax.methods.sparsegpt import SparseGPT
from nettrim_jax.methods.sparsest import Sparsest
from nettrim_jax.methods.taylor import Taylor
from nettrim_jax.methods.trace import Trace, trace
from nettrim_jax.methods.tryandlearn import TryAndLearn
from nettrim_jax.methods.units import Units
from nettrim_jax.pruning import Pruned, prune
from nettrim_jax.recovering import recover
from nettrim_jax.refitting import refit
from nettrim_jax.report import (
    Listing,
    Margin,
    Report,
    SearchStep,
    SiteInfo,
    SiteReport,
    Split,
)
from nettrim_jax.report.sharing import SharedSite, ShareReport
from nettrim_jax.results import NetTrimError
from nettrim_jax.selection import sites
from nettrim_jax.sharing import Shared, share
from nettrim_jax.structure.groups import units
from nettrim_jax.structure.removal import shrink
from nettrim_jax.training.codes import keep_shared
from nettrim_jax.training.cost import connection_cost
from nettrim_jax.training.masking import keep_sparse
from nettrim_jax.training.recovery import Recovered, RecoverReport, RecoverState
from nettrim_jax.training.schedules import (
    DenseSparseDense,
    Gradual,
    Regrow,
    Rounds,
    Threshold,
)
from nettrim_jax.training.sparse import train_sparse
from nettrim_jax.training.state import SparseState, check_sparse, mask_of
from nettrim_jax.trimming import trim

__all__ = [
    "ADMM",
    "APoZ",
    "Blocks",
    "Box",
    "Certificate",
    "Codes",
    "DenseSparseDense",
    "ElasticNet",
    "Fisher",
    "FixedPattern",
    "Gradual",
    "GroupL1",
    "History",
    "Inputs",
    "Joint",
    "L1",
    "L2",
    "LayerOBS",
    "Listing",
    "Magnitude",
    "Margin",
    "MeanActivation",
    "NM",
    "NetTrim",
    "NetTrimError",
    "Neurons",
    "NonZeros",
    "Nonnegative",
    "Normalized",
    "OBD",
    "OBS",
    "Path",
    "Program",
    "Pruned",
    "Random",
    "Reconstruct",
    "RecoverReport",
    "RecoverState",
    "Recovered",
    "Regrow",
    "Report",
    "Rounds",
    "Saliency",
    "SearchStep",
    "ShareReport",
    "Shared",
    "SharedSite",
    "Sign",
    "SiteInfo",
    "SiteReport",
    "Solution",
    "SparseGPT",
    "SparseGroup",
    "SparseState",
    "Sparsest",
    "Sparsity",
    "Split",
    "Stats",
    "Taylor",
    "Threshold",
    "Trace",
    "TryAndLearn",
    "Units",
    "Wanda",
    "check_sparse",
    "clip_program",
    "connection_cost",
    "describe",
    "files",
    "history",
    "keep_shared",
    "keep_sparse",
    "linear_program",
    "link_normalize",
    "load",
    "mask_of",
    "methods",
    "path",
    "patterns",
    "penalties",
    "plots",
    "prune",
    "recover",
    "refit",
    "relu_program",
    "results",
    "save",
    "share",
    "shrink",
    "sites",
    "solve",
    "structure",
    "to_cvxpy",
    "trace",
    "train_sparse",
    "training",
    "trim",
    "units",
]
