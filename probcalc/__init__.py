"""Probabilistic calculus for PyTorch: numbers with error bars, and a verdict.

Names are loaded when first used, so that ``import probcalc`` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Estimate": "probcalc.result",
    "EstimateWarning": "probcalc.status",
    "Solution": "probcalc.result",
    "Status": "probcalc.status",
    "ComplexStep": "probcalc.differentiation.derivative",
    "Richardson": "probcalc.differentiation.derivative",
    "classify_critical_point": "probcalc.differentiation.curvature",
    "compare_differentiation": "probcalc.differentiation.compare",
    "continuity": "probcalc.differentiation.limits",
    "derivative": "probcalc.differentiation.derivative",
    "differentiability": "probcalc.differentiation.limits",
    "directional_derivative": "probcalc.differentiation.autodiff",
    "fisher_product": "probcalc.differentiation.autodiff",
    "gauss_newton_product": "probcalc.differentiation.autodiff",
    "grad": "probcalc.differentiation.autodiff",
    "hessian": "probcalc.differentiation.autodiff",
    "hvp": "probcalc.differentiation.autodiff",
    "integrated_gradients": "probcalc.differentiation.attribution",
    "jacobian": "probcalc.differentiation.autodiff",
    "limit": "probcalc.differentiation.limits",
    "partial": "probcalc.differentiation.autodiff",
    "LBFGS": "probcalc.optimization.lbfgs",
    "Adam": "probcalc.optimization.first_order",
    "AdamW": "probcalc.optimization.first_order",
    "RMSprop": "probcalc.optimization.first_order",
    "SGD": "probcalc.optimization.first_order",
    "Newton": "probcalc.optimization.newton",
    "GradientDescent": "probcalc.optimization.descent",
    "ProjectedGradient": "probcalc.optimization.descent",
    "SteepestDescent": "probcalc.optimization.descent",
    "TrustRegion": "probcalc.optimization.trust_region",
    "least_squares": "probcalc.optimization.least_squares",
    "minimize_constrained": "probcalc.optimization.constrained",
    "CosineSchedule": "probcalc.optimization.schedule",
    "ExponentialSchedule": "probcalc.optimization.schedule",
    "LinearSchedule": "probcalc.optimization.schedule",
    "Schedule": "probcalc.optimization.schedule",
    "CheckpointError": "probcalc.training.checkpoint",
    "EarlyStopping": "probcalc.training.callbacks",
    "TrainResult": "probcalc.training.loop",
    "find_learning_rate": "probcalc.training.rates",
    "load_checkpoint": "probcalc.training.checkpoint",
    "train": "probcalc.training.loop",
    "minimize": "probcalc.optimization.minimize",
    "Enumeration": "probcalc.integration.enumeration",
    "Moment": "probcalc.integration.closed_form",
    "MonteCarlo": "probcalc.integration.monte_carlo",
    "Cubature": "probcalc.integration.cubature",
    "probability": "probcalc.integration.probability",
    "expect": "probcalc.integration.expect",
    "log_expect": "probcalc.integration.log_expect",
    "QuasiMonteCarlo": "probcalc.integration.quasi_monte_carlo",
    "ImportanceSampling": "probcalc.integration.importance",
    "ratio": "probcalc.integration.ratios",
    "ControlVariates": "probcalc.integration.control_variates",
    "ScoreControl": "probcalc.integration.control_variates",
    "Relaxation": "probcalc.integration.relaxation",
    "Stratified": "probcalc.integration.quasi_monte_carlo",
    "Vegas": "probcalc.integration.vegas",
    "Fixed": "probcalc.integration.gradient_estimators",
    "LeaveOneOut": "probcalc.integration.gradient_estimators",
    "MeasureValued": "probcalc.integration.gradient_estimators",
    "NoBaseline": "probcalc.integration.gradient_estimators",
    "Pathwise": "probcalc.integration.gradient_estimators",
    "ScoreFunction": "probcalc.integration.gradient_estimators",
    "compare_gradient_estimators": "probcalc.integration.compare_gradients",
    "expect_grad": "probcalc.integration.expect_grad",
    "SparseGrid": "probcalc.integration.sparse_grid",
    "GaussKronrod": "probcalc.integration.quadrature",
    "GaussQuadrature": "probcalc.integration.gauss_quadrature",
    "integrate": "probcalc.integration.integrate",
    "Amortised": "probcalc.inference.guides",
    "DefensiveMixture": "probcalc.inference.guides",
    "Delta": "probcalc.inference.guides",
    "Flow": "probcalc.inference.guides",
    "LowRank": "probcalc.inference.guides",
    "Structured": "probcalc.inference.guides",
    "FullRank": "probcalc.inference.guides",
    "GaussianMixture": "probcalc.inference.guides",
    "MeanField": "probcalc.inference.guides",
    "StudentT": "probcalc.inference.guides",
    "Target": "probcalc.inference.target",
    "Posterior": "probcalc.inference.posterior",
    "load_posterior": "probcalc.inference.posterior",
    "SampleAverage": "probcalc.inference.sample_average",
    "kl": "probcalc.divergence.kl",
    "kl_bounds": "probcalc.divergence.bounds",
    "jeffreys": "probcalc.divergence.f_divergence",
    "jensen_shannon": "probcalc.divergence.f_divergence",
    "total_variation": "probcalc.divergence.f_divergence",
    "hellinger": "probcalc.divergence.f_divergence",
    "chi_squared": "probcalc.divergence.f_divergence",
    "renyi": "probcalc.divergence.renyi",
    "alpha_divergence": "probcalc.divergence.renyi",
    "wasserstein": "probcalc.divergence.transport",
    "kl_from_samples": "probcalc.divergence.from_samples",
    "mutual_information_from_samples": "probcalc.divergence.from_samples",
    "energy_distance": "probcalc.divergence.distances",
    "maximum_mean_discrepancy": "probcalc.divergence.distances",
    "kl_from_log_probs": "probcalc.divergence.from_log_probs",
    "K1": "probcalc.divergence.from_log_probs",
    "K2": "probcalc.divergence.from_log_probs",
    "K3": "probcalc.divergence.from_log_probs",
    "Controlled": "probcalc.divergence.from_log_probs",
    "fit": "probcalc.inference.fit",
    "linear_response": "probcalc.inference.response",
    "laplace": "probcalc.inference.laplace",
    "EmpiricalFisher": "probcalc.inference.curvature",
    "GaussNewton": "probcalc.inference.curvature",
    "Hessian": "probcalc.inference.curvature",
    "Precision": "probcalc.inference.curvature",
    "expectation_maximization": "probcalc.inference.expectation_maximization",
    "LikelihoodFit": "probcalc.inference.likelihood_fit",
    "maximum_likelihood": "probcalc.inference.maximum_likelihood",
    "maximum_a_posteriori": "probcalc.inference.maximum_a_posteriori",
}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name == "models":
        return import_module("probcalc.models")
    if name not in _HOME:
        raise AttributeError(f"module 'probcalc' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
