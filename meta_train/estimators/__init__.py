"""Meta-gradient estimators: ``(problem, config, mesh) -> Estimator``.

To add one, write its constructor and add its line to ESTIMATORS; the contract tests
find it there.
"""

from meta_train.estimators import backprop, es

ESTIMATORS = {"es": es.full_es, "es_single": es.es_single, "pes": es.pes, "tbptt": backprop.tbptt}
