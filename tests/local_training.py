"""Training steps without a runner, for the tests."""

from types import SimpleNamespace
from unittest import mock

import torch
from mmengine.logging import MessageHub, MMLogger

from fba_mm import FBAHook, LocalOptimWrapper


class Trainer:
    """Runs ``train_step`` with the hook and the wrapper, as MMEngine's loop would.

    Args:
        model: The model; with a LocalBackbone it is trained locally.
        wrapper: Class of the optimizer wrapper.
        optimizer: ``optimizer(parameters)``.
        scope: Of the feature bank.
        hook: More arguments of the hook.
        **kwargs: For the wrapper.
    """

    def __init__(
        self, model, wrapper=LocalOptimWrapper, optimizer=None, scope='past', hook=None, **kwargs
    ):
        optimizer = optimizer or (lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9))
        self.model = model
        if issubclass(wrapper, LocalOptimWrapper):
            kwargs.setdefault('apply', 'end')  # Most tests look at gradients, which eager frees.
        self.optim_wrapper = wrapper(optimizer=optimizer(model.parameters()), **kwargs)
        self.hook = FBAHook(scope=scope, log_terms=True, **(hook or {}))
        self.runner = SimpleNamespace(
            model=model,
            optim_wrapper=self.optim_wrapper,
            seed=0,
            iter=0,
            cfg={},
            hooks=[],
            train_loop=SimpleNamespace(dataloader=None),
            logger=MMLogger.get_current_instance(),
            message_hub=MessageHub.get_instance('tests'),
        )
        self.log = {}
        self.hook.before_run(self.runner)
        self.hook.before_train(self.runner)

    def step(self, data):
        """One iteration; returns the log variables."""
        self.hook.before_train_iter(self.runner, 0, data)
        log = self.model.train_step(data, self.optim_wrapper)
        self.log = dict(self.hook._log)
        self.hook.after_train_iter(self.runner, 0, data, log)
        self.runner.iter += 1
        return {k: float(v.detach()) for k, v in log.items()}

    def gradients(self, data):
        """Gradients of one iteration, which is not applied."""
        with mock.patch.object(type(self.optim_wrapper), 'step'), mock.patch.object(
            type(self.optim_wrapper), 'zero_grad'
        ), mock.patch.object(type(self.optim_wrapper), '_apply_gradients', create=True):
            self.step(data)
        grads = {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}
        self.model.zero_grad()
        return grads
