"""One run: build the parts, then loop over steps, log, save and evaluate."""

import contextlib
import itertools
import json
import logging
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import ml_collections

from medflax import config as config_lib
from medflax import optim, report, selection, summary
from medflax import workdir as workdir_lib
from medflax.build import Parts, build, jit_train_step
from medflax.checkpoint import Checkpointer
from medflax.data import DATASETS
from medflax.data.documents import Dataset, Prompt
from medflax.data.pipeline import train_iterator
from medflax.data.prefetch import prefetch_to_device
from medflax.evals import EVALUATORS, EvalContext, Evaluator
from medflax.inference.features import FeatureStore
from medflax.interrupt import Interrupt, Stopped
from medflax.metric_writer import MetricWriter, Progress, Window, log_to_console
from medflax.parallel import processes, sharding
from medflax.speed import Launcher, Utilisation, peak_memory
from medflax.utils import UserError

log = logging.getLogger("medflax")


def dry_run(config: ml_collections.ConfigDict) -> None:
  """Prints sizes; builds nothing on a device and creates no file."""
  parts = build(config)
  print(f"devices   {summary.describe_mesh(parts.mesh)}")
  print(f"model     {summary.describe_parameters(parts.state)}")
  print(summary.parameter_table(parts.state))
  print(f"batch     {config.train.batch_size} rows")
  print(summary.batch_table(parts.batch))
  print("memory on each device")
  print(summary.memory_table(parts.state, parts.batch))


def train(config: ml_collections.ConfigDict, workdir: pathlib.Path, *, command: str) -> None:
  """Trains, evaluates and reports; goes on from the newest checkpoint of `workdir`.

  Args:
    config: validated; see `medflax.config.validate`.
    workdir: created if need be.
    command: the command line that resumes the run, told to whoever interrupts it.

  Raises:
    UserError: for what the user can mend: data, workdir, config, a diverged loss.
  """
  log_to_console(quiet=jax.process_index() != 0)
  with processes.Watch(hang_seconds=config.train.hang_seconds) as watch:
    try:
      _train(config, workdir, command, watch)
      processes.gather(None)  # nobody leaves before the first has reported
    except UserError:
      raise
    except (jax.errors.JaxRuntimeError, ValueError):
      watch.explain()
      raise


def _train(
  config: ml_collections.ConfigDict, workdir: pathlib.Path, command: str, watch: processes.Watch
) -> None:
  changes, finished = workdir_lib.check(workdir, config), is_finished(config, workdir)
  changes, finished = processes.gather((changes, finished))[0]
  for line in changes:
    log.warning("config changed: %s", line)
  if finished and not changes:
    log.info("%s has finished", workdir)
    return _report(workdir)
  dataset = DATASETS[config.data.source](config.data, config.seed)
  parts = build(config, dataset.media_per_sample)
  run = Run(parts, dataset, workdir, watch)
  log.info("workdir   %s", workdir)
  log.info("devices   %s", summary.describe_mesh(parts.mesh))
  log.info("model     %s", summary.describe_parameters(parts.state))
  log.info("data      %s %s", dataset.name, dataset.version)
  with contextlib.ExitStack() as stack:
    opened = workdir_lib.opened(workdir, config, summary.facts(parts.mesh, parts.state))
    processes.by_first(lambda: stack.enter_context(opened))
    processes.by_first(lambda: workdir_lib.write_lists(workdir, dataset))
    _cache_compilations(workdir)
    try:
      run(changed=bool(changes))
    except Stopped as stopped:
      log.info("stopped by %s at step %d; to go on:", stopped, run.step)
      log.info("  %s", command)
      return None
  return _report(workdir)


class Run:
  """The loop over steps, and the place it is at.

  Attributes:
    step: steps made.
    state: the train state after them.
    position: of this process's data iterator after them.
  """

  def __init__(self, parts: Parts, dataset: Dataset, workdir: pathlib.Path, watch: processes.Watch):
    config = parts.config
    self.parts, self.config, self.dataset, self.workdir = parts, config, dataset, workdir
    self._watch = watch
    self.step, self.position = 0, b""
    self.state: Any = None  # until it is made or restored
    self.interrupt = Interrupt()
    context = EvalContext(
      model=parts.model,
      tokenizer=parts.tokenizer,
      dataset=dataset,
      prompt=Prompt(**config.prompt.to_dict()),
      data_config=config.data,
      seed=config.seed,
      workdir=workdir,
      mesh=parts.mesh,
      put=parts.put,
    )
    self.evaluators: dict[str, Evaluator] = {
      name: EVALUATORS[section.type](name, section, context)
      for name, section in config.evals.items()
    }

  def __call__(self, *, changed: bool) -> None:
    """Trains to the last step. Raises Stopped, with everything saved, when a signal asks for it.

    Args:
      changed: whether results from before must be made again because the config is another.
    """
    checkpoints = Checkpointer(self.workdir / "checkpoints", keep=self.config.checkpoint.keep)
    with checkpoints, self.interrupt:
      self._restore(checkpoints)
      if changed:
        processes.by_first(lambda: workdir_lib.drop_results(self.workdir, self.step))
      with MetricWriter(self.workdir, step=self.step) as writer:
        try:
          with jax.set_mesh(self.parts.mesh), nn.logical_axis_rules(sharding.RULES):
            self._loop(checkpoints, writer)
            self._evaluate_best(checkpoints, writer)
        except Stopped:
          self._save(checkpoints)
          raise

  def _restore(self, checkpoints: Checkpointer) -> None:
    found = checkpoints.restore(self.parts.state)
    if found is None:
      self.state = self.parts.create(self.config.seed)
      return
    self.step, self.state, self.position = found
    log.info("resumed from step %d", self.step)
    if self.step > (last := self.config.train.num_steps):
      raise UserError(f"the checkpoint is at step {self.step}, beyond train.num_steps = {last}")

  def _save(self, checkpoints: Checkpointer) -> None:
    config = config_lib.to_dict(self.config)
    checkpoints.save(self.step, self.state, self.position, config)

  def _loop(self, checkpoints: Checkpointer, writer: MetricWriter) -> None:
    config, every = self.config.train, self.config.checkpoint.every
    if self.step:
      self._evaluate(writer)  # what a kill right after the save cut off
    if self._select(checkpoints) or self.step == config.num_steps:
      return
    began, before, first = time.monotonic(), writer.last.get("train/seconds", 0.0), self.step + 1
    launch = Launcher(
      jit_train_step(self.parts), self.config.profile.steps, self.workdir / "profile"
    )
    utilisation = None  # takes another trace of the model, for which the first step does not wait
    _, shares = sharding.data_share(self.parts.mesh)
    # Before the data's thread starts: tracing would wait for it, as both are Python.
    launch.compile(self.state, self.parts.batch)
    with (
      launch,
      self._batches() as batches,
      Progress(self.step, config.num_steps) as progress,
    ):
      window = Window(config.batch_size, batches, shares)
      for batch in itertools.islice(batches, config.num_steps - self.step):
        with window.spent("launch"):
          self.state, metrics = launch(self.step + 1, self.state, batch)
        self.step, self.position = self.step + 1, batches.get_state()
        self._watch.note(self.step)
        window.add(metrics)
        progress.advance()
        if self.step == first:
          jax.block_until_ready(metrics)
          log.info("first step after %.1f s, most of it compilation", time.monotonic() - began)
          utilisation = self._utilisation()
          window.restart_clock()
        last = self.step == config.num_steps
        if self._logs():
          scalars = window.close()
          seconds = scalars.get("train/step_seconds")
          if seconds and utilisation:
            scalars |= utilisation(seconds) | peak_memory()
          scalars["train/recompilations"] = launch.recompilations
          scalars["train/lr"] = self._learning_rate(scalars["train/bad_steps"])
          scalars["train/seconds"] = before + time.monotonic() - began
          scalars |= {f"data/{name}": total for name, total in self._counters(batches).items()}
          writer.write(self.step, scalars)
          progress.show(self.step, scalars)
        if self.step % min(config.log_every, config.max_bad_steps) == 0:
          self._check_finite(int(metrics["bad_in_a_row"]))
        if last or (every and self.step % every == 0):
          with window.spent("device"):  # the steps ahead, which hold up nothing
            jax.block_until_ready(self.state)
          with window.spent("save"):
            self._save(checkpoints)
        self._check_interrupt()
        if self._evaluate(writer):
          window.restart_clock()
          if self._select(checkpoints):
            return

  @contextlib.contextmanager
  def _batches(self) -> Iterator[prefetch_to_device]:
    """Device batches from `position` on."""
    index, count = sharding.data_share(self.parts.mesh)
    iterator = train_iterator(
      self.dataset,
      self.parts.tokenizer,
      self.config,
      seed=self.config.seed,
      process_index=index,
      process_count=count,
    )
    if self.position:
      iterator.set_state(self.position)
    batches = prefetch_to_device(iterator, self.parts.put)
    try:
      yield batches
    finally:
      batches.close()
      iterator.close()

  def _utilisation(self) -> Utilisation:
    parts = self.parts
    return Utilisation(parts.model, parts.state, parts.batch, parts.mesh)

  def _counters(self, batches: prefetch_to_device) -> dict[str, int]:
    """Of all processes' data, those that several read counted once."""
    index, _ = sharding.data_share(self.parts.mesh)
    shares = dict(processes.gather((index, batches.counters))).values()
    names = dict.fromkeys(name for counters in shares for name in counters)
    return {name: sum(counters.get(name, 0) for counters in shares) for name in names}

  def _logs(self) -> bool:
    config = self.config.train
    return self.step == config.num_steps or self.step % config.log_every == 0

  def _learning_rate(self, skipped: int | float) -> float:
    """Of the update made last: skipped steps do not advance the schedule."""
    schedule = optim.make_schedule(self.config.optimizer, self.config.train.num_steps)
    return float(schedule(max(self.step - skipped - 1, 0)))

  def _check_finite(self, bad_in_a_row: int) -> None:
    if bad_in_a_row >= self.config.train.max_bad_steps:
      raise UserError(
        f"step {self.step}: the loss or its gradient was not finite {bad_in_a_row} times in a row; "
        "lower config.optimizer.lr or config.optimizer.clip_norm, or look at the data"
      )

  def _check_interrupt(self) -> None:
    """Raises Stopped on every process once a signal has reached one of them."""
    if jax.process_count() == 1:
      self.interrupt.check()
      return
    signals = processes.gather(self.interrupt.signal) if self._logs() else []
    if signal := next(filter(None, signals), ""):
      raise Stopped(signal)

  def _select(self, checkpoints: Checkpointer) -> bool:
    """Keeps the best step up to now; True, with everything saved, where training ends early."""
    best = self.config.best
    if not best.metric:
      return False
    found = selection.read_values(self.workdir, best.metric)
    found = processes.gather([pair for pair in found.items() if pair[0] <= self.step])[0]
    values = dict(found)  # sent as pairs: JSON would make strings of the keys
    checkpoints.best = selection.best_step(values, best.mode)
    last = selection.last_step(values, best.mode, best.patience)
    if self.step in (checkpoints.best, last):
      self._save(checkpoints)
    if last is not None:
      log.info("%s is no better than at step %d: training ends", best.metric, checkpoints.best)
    return last is not None

  def _evaluate(self, writer: MetricWriter) -> bool:
    """Runs the evaluators that are due at this step; True if there are any."""
    due = [name for name in self.evaluators if _due(self.config, name, self.step)]
    self._run(due, self.step, writer)
    return bool(due)

  def _evaluate_best(self, checkpoints: Checkpointer, writer: MetricWriter) -> None:
    """Runs the evaluators that wait for the best step, if one is chosen."""
    step = checkpoints.best
    if step is None:
      return
    log.info("best      step %d by %s", step, self.config.best.metric)
    if step != self.step:
      self.state = None  # room for the other
      self.state = checkpoints.restore_step(step, self.parts.state)
    self._run([name for name in self.evaluators if not _due(self.config, name, step)], step, writer)

  def _run(self, names: Sequence[str], step: int, writer: MetricWriter) -> None:
    """Runs evaluators on the state, which is that of `step`.

    Results that are there already, of a run that was killed later, are taken over.
    """
    store = FeatureStore()
    for name in names:
      path = workdir_lib.results_path(self.workdir, name, step)
      if not processes.gather(path.exists())[0]:
        # The checkpoint holds this step, so an evaluation may be thrown away half-done. With
        # several processes it may not: the others would wait for this one.
        alone = jax.process_count() == 1
        with self.interrupt.at_once() if alone else contextlib.nullcontext():
          self.evaluators[name].run(self.state.eval_params, step, store)
      if jax.process_index() == 0:
        measured = json.loads(path.read_text())["metrics"]
        writer.write(step, {key: value["value"] for key, value in measured.items()})


def _cache_compilations(workdir: pathlib.Path) -> None:
  """Lets a resumed run load the programs of the first one: at once, and the same to the bit.

  A directory that the user has set, by `JAX_COMPILATION_CACHE_DIR`, stays.
  """
  if not jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_compilation_cache_dir", str((workdir / "compiled").absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _due(config: ml_collections.ConfigDict, name: str, step: int) -> bool:
  """Whether an evaluator runs at a step; those that only judge the end wait for the best step."""
  every, metric = config.evals[name].every, config.best.metric
  last = step == config.train.num_steps and (not metric or name == selection.evaluator(metric))
  return last or bool(every and step % every == 0)


def is_finished(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> bool:
  """Whether the last step is saved and every evaluation of it, or of the best one, is there."""
  last = judged = config.train.num_steps
  if config.best.metric:
    values = selection.read_values(workdir, config.best.metric)
    last = selection.last_step(values, config.best.mode, config.best.patience) or last
    judged = selection.best_step(values, config.best.mode) or last
    if last not in values:
      return False
  results = (workdir_lib.results_path(workdir, name, judged) for name in config.evals)
  return Checkpointer.has_step(workdir / "checkpoints", last) and all(p.exists() for p in results)


def _report(workdir: pathlib.Path) -> None:
  if jax.process_index() == 0:
    path = report.write_report(workdir)
    log.info("\n%s\n\nreport    %s", report.fewshot_table(workdir), path)
