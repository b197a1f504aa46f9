"""Predict features by weights over the anchors: families, their labels and rows."""

import types

from tapstudy.predictors.adams_bashforth import AdamsBashforth as AdamsBashforth
from tapstudy.predictors.chebyshev import Chebyshev as Chebyshev
from tapstudy.predictors.dmd import DynamicModes as DynamicModes
from tapstudy.predictors.family import Candidates as Candidates
from tapstudy.predictors.family import Family as Family
from tapstudy.predictors.family import Label as Label
from tapstudy.predictors.family import candidates as candidates
from tapstudy.predictors.family import check_family as check_family
from tapstudy.predictors.family import rows_of as rows_of
from tapstudy.predictors.foca import FoCa as FoCa
from tapstudy.predictors.frequency import FrequencySplit as FrequencySplit
from tapstudy.predictors.hermite import HermiteFamily as HermiteFamily
from tapstudy.predictors.learned import LearnedLinear as LearnedLinear
from tapstudy.predictors.learned import step_gram as step_gram
from tapstudy.predictors.least_squares import LeastSquares as LeastSquares
from tapstudy.predictors.nonlinear import NonlinearPredictor as NonlinearPredictor
from tapstudy.predictors.nonlinear import combine_values as combine_values
from tapstudy.predictors.nonlinear import token_gram as token_gram
from tapstudy.predictors.pade import Pade as Pade
from tapstudy.predictors.pade import TCPade as TCPade
from tapstudy.predictors.recursion import combine as combine
from tapstudy.predictors.recursion import unroll as unroll
from tapstudy.predictors.regression import regression_row as regression_row
from tapstudy.predictors.reuse import Reuse as Reuse
from tapstudy.predictors.taylor import Clip as Clip
from tapstudy.predictors.taylor import TaylorFamily as TaylorFamily
from tapstudy.predictors.token_least_squares import TokenLeastSquares as TokenLeastSquares
from tapstudy.predictors.union import Union as Union

__all__ = sorted(name for name, found in vars().items() if name[0] != "_" and not isinstance(found, types.ModuleType))
