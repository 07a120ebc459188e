"""A causal language model that decodes token by token: a cache of fixed length, and on a GPU one captured CUDA graph.

The cache keeps its position in a tensor that every step moves on, and a step leaves the token that it chose where the
next one reads it: so a graph that was captured once decodes by being replayed.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch

_WARM_UP = 3  # steps before one is captured: libraries make their handles and workspaces, kernels are compiled
_READ_BACK = ("dynamic", "longrope")  # rotary embeddings that look at the position on the host


class Decoder:
    """Decodes `batch` texts side by side with a model of transformers, prompts and new tokens within `length`.

    reason: why steps are called one by one, or None where they are replayed as a CUDA graph.
    """

    def __init__(self, model: Any, length: int, batch: int = 1, temperature: float = 0.0, seed: int = 0) -> None:
        """model: a causal language model, on one device. length: positions of the cache. temperature: 0 takes the
        likeliest token, others draw from softmax(logits / temperature), the same ones for the same seed.

        ValueError for numbers that can't be; a model that cannot be captured is decoded all the same.
        """
        _check(length, batch, temperature)
        self.length, self.batch = length, batch
        self._model, self._device = model.eval(), model.device
        self._temperature = temperature and max(temperature, torch.finfo(torch.float32).tiny)
        self._generator = torch.Generator(self._device).manual_seed(seed)
        self._cache = static_cache(model.config, length)
        self._arguments = _arguments(model, self._cache)
        self._graph: Any = None
        self._positions = 0  # of the cache that are filled
        self.reason: str | None = "steps are captured on a GPU alone"
        with torch.inference_mode():
            self._tokens = torch.zeros((batch, 1), dtype=torch.long, device=self._device)
            drawn = model.config.get_text_config().vocab_size if temperature else 0
            self._noise = torch.ones((batch, drawn), device=self._device)
            self._advance(self._tokens)  # makes the cache, and has kernels decided and compiled
            if self._device.type == "cuda":
                self._capture()

    def prefill(self, prompt: torch.Tensor) -> torch.Tensor:
        """Begin anew with a prompt [batch, at least 1] of token ids; the token [batch] that follows, on the device and
        overwritten by the next step."""
        if prompt.shape[:1] != (self.batch,) or prompt.ndim != 2 or not prompt.shape[1]:
            raise ValueError(f"prompt: {tuple(prompt.shape)}, must be ({self.batch}, at least 1) token ids")
        self._make_room(prompt.shape[1], 0)
        with torch.inference_mode():
            self._cache.reset()
            self._draw()
            self._advance(prompt.to(self._device))
        self._positions = prompt.shape[1]
        return self._tokens[:, 0]

    def begin(self, positions: int) -> torch.Tensor:
        """Begin anew as if a prompt of so many tokens, 1 or more, had been read: zeros in the cache are as good where
        only time counts."""
        self._make_room(positions, 0)
        with torch.inference_mode():
            self._cache.reset()
            for layer in self._cache.layers:
                if hasattr(layer, "cumulative_length"):
                    layer.cumulative_length.fill_(positions)
            self._tokens.zero_()
        self._positions = positions
        return self._tokens[:, 0]

    def step(self) -> torch.Tensor:
        """Read the tokens chosen last; those [batch] that follow, on the device and overwritten by the next step."""
        self._make_room(1, self._positions)
        with torch.inference_mode():
            self._draw()
            if self._graph is None:
                self._advance(self._tokens)
            else:
                self._graph.replay()
        self._positions += 1
        return self._tokens[:, 0]

    def tokens(
        self, prompt: torch.Tensor, count: int, *, eos: Collection[int] = (), pad: int | None = None
    ) -> Iterator[list[int]]:
        """The tokens that follow a prompt [batch, at least 1], one of each text at a time, at most `count` times.

        eos: tokens that end a text; the iterator ends with the last text, and the others have `pad` (an eos where it is
        None) until then. ValueError, before anything is decoded, where the cache is too short.
        """
        if count < 1:
            raise ValueError(f"count={count}: must be 1 or more tokens")
        if prompt.ndim == 2 and prompt.shape[1] + count - 1 > self.length:
            raise ValueError(
                f"a prompt of {prompt.shape[1]} tokens and {count} new ones: the cache holds {self.length} positions, "
                f"{prompt.shape[1] + count - 1} are needed"
            )
        return self._stream(prompt, count, eos, min(eos, default=0) if pad is None else pad)

    def _stream(self, prompt: torch.Tensor, count: int, eos: Collection[int], pad: int) -> Iterator[list[int]]:
        ended = [False] * self.batch
        for number in range(count):
            chosen = (self.step() if number else self.prefill(prompt)).tolist()
            yield [pad if over else token for token, over in zip(chosen, ended)]
            ended = [over or token in eos for token, over in zip(chosen, ended)]
            if all(ended):
                return

    def _advance(self, tokens: torch.Tensor) -> None:
        """Read tokens [batch, any] and leave those that follow in `_tokens`: what is captured, so nothing here may
        look at a number or depend on one."""
        logits = self._model(input_ids=tokens, **self._arguments).logits[:, -1].float()
        if self._temperature:
            # The largest of these is a draw from the softmax (Gumbel), without the host's seeing it.
            logits = (logits - logits.amax(-1, keepdim=True)) / self._temperature - self._noise.log()
        self._tokens.copy_(logits.argmax(-1, keepdim=True))

    def _draw(self) -> None:
        """New numbers for the next choice, beside the graph, for whose replays a generator would have to be known."""
        if self._temperature:
            self._noise.exponential_(generator=self._generator)

    def _capture(self) -> None:
        """Capture a step, unless the model looks at numbers on the host: then keep the reason."""
        self.reason = _reads_back(self._model, self._cache.layers)
        if self.reason is not None:
            return
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream(self._device)
        with torch.cuda.device(self._device):
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP):
                    self._cache.reset()  # so that it never is too short
                    self._advance(self._tokens)
            torch.cuda.current_stream().wait_stream(side)
            try:
                with torch.cuda.graph(graph):
                    self._advance(self._tokens)
            except RuntimeError as error:  # a model that waits for the GPU
                self.reason = str(error).splitlines()[0]
            else:
                self._graph = graph

    def _make_room(self, more: int, positions: int) -> None:
        """ValueError unless the cache has so many more positions: beyond its end a GPU would write where it likes."""
        if not 0 < more <= self.length - positions:
            raise ValueError(f"{more} tokens more: the cache has {self.length} positions, {positions} of them filled")


def static_cache(config: Any, length: int) -> Any:
    """A cache of `length` positions for a model with this configuration, whose layers keep their position in a tensor.

    Layers that attend to a window only have all positions, too: transformers' cache of a window counts on the host.
    """
    from transformers import StaticCache
    from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer

    cache = StaticCache(config=config, max_cache_len=length)
    windows = [type(layer) is StaticSlidingWindowLayer for layer in cache.layers]
    cache.layers = [StaticLayer(length) if window else layer for layer, window in zip(cache.layers, windows)]
    return cache


def _arguments(model: Any, cache: Any) -> dict[str, Any]:
    """Of the model's call, beside the tokens: the cache has another name in older versions of transformers, and only
    the last position's logits are wanted where the model can leave out the others."""
    known = inspect.signature(model.forward).parameters
    name = "cache" if "cache" in known else "past_key_values"
    return {name: cache, "use_cache": True, **({"logits_to_keep": 1} if "logits_to_keep" in known else {})}


def _reads_back(model: Any, layers: Sequence[Any]) -> str | None:
    """Why a step of the model can't be captured, as far as that is known before, or None."""
    from transformers.cache_utils import StaticLayer

    others = {type(layer).__name__ for layer in layers if type(layer) is not StaticLayer}
    if others:
        return f"the model has other caches than of keys and values: {', '.join(sorted(others))}"
    on_host = next((module for module in model.modules() if not getattr(module, "is_capturable", True)), None)
    if on_host is not None:
        return f"{type(on_host).__name__} decides on the host what is multiplied"
    rotary = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = {each.get("rope_type") for each in (rotary, *rotary.values()) if isinstance(each, dict)}
    waiting = next((kind for kind in _READ_BACK if kind in kinds), None)
    return f"its {waiting} rotary embedding looks at positions on the host" if waiting else None


def _check(length: int, batch: int, temperature: float) -> None:
    for name, value in (("length", length), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be 1 or more")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature={temperature}: must be 0 (the likeliest token) or a positive number")
