"""Prunes trained neural networks by convex optimisation (Net-Trim), in JAX."""

from nettrim_jax import plots, results
from nettrim_jax.admm import history, solve
from nettrim_jax.criteria import Magnitude, Random, SparseGPT, Wanda
from nettrim_jax.entrywise import (
    L1,
    Box,
    ElasticNet,
    FixedPattern,
    Nonnegative,
    Sign,
)
from nettrim_jax.grouping import GroupL1, SparseGroup
from nettrim_jax.interop import to_cvxpy
from nettrim_jax.methods import NetTrim
from nettrim_jax.normalizing import Normalized, link_normalize
from nettrim_jax.paths import Path, path
from nettrim_jax.patterns import NM, Blocks, Inputs, Neurons, Sparsity
from nettrim_jax.programs import Program, linear_program, relu_program
from nettrim_jax.pruning import Pruned, prune
from nettrim_jax.reconstruction import Reconstruct
from nettrim_jax.report import Listing, Report, SearchStep, SiteInfo, SiteReport, Split
from nettrim_jax.restoring import refit
from nettrim_jax.results import NetTrimError
from nettrim_jax.selection import sites
from nettrim_jax.settings import ADMM
from nettrim_jax.solutions import Certificate, History, Solution, Stats
from nettrim_jax.training import keep_sparse

__all__ = [
    "ADMM",
    "Blocks",
    "Box",
    "Certificate",
    "ElasticNet",
    "FixedPattern",
    "GroupL1",
    "History",
    "Inputs",
    "L1",
    "Listing",
    "Magnitude",
    "NM",
    "NetTrim",
    "NetTrimError",
    "Neurons",
    "Nonnegative",
    "Normalized",
    "Path",
    "Program",
    "Pruned",
    "Random",
    "Reconstruct",
    "Report",
    "SearchStep",
    "Sign",
    "SiteInfo",
    "SiteReport",
    "Solution",
    "SparseGPT",
    "SparseGroup",
    "Sparsity",
    "Split",
    "Stats",
    "Wanda",
    "history",
    "keep_sparse",
    "linear_program",
    "link_normalize",
    "path",
    "plots",
    "prune",
    "refit",
    "relu_program",
    "results",
    "sites",
    "solve",
    "to_cvxpy",
]
