"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const tiles = JSON.parse(at("tiles").textContent);
  const gallery = [...document.querySelectorAll("#gallery figure")];
  // The first tile's pictures stand in the page itself, so that it shows something without this script.
  for (const layer of tiles[0].layers) {
    layer.uri = gallery.find((figure) => figure.dataset.key === layer.key).querySelector(".layer").getAttribute("src");
  }
  const frame = at("frame"), pane = at("pane"), sheet = at("sheet"), handle = at("swipe"), tip = at("tip");
  const sides = { left: at("left"), right: at("right") };
  const state = { tile: 0, left: "map", right: "labels", place: 50, zoom: 1, alone: null };
  const LARGEST_ZOOM = 32;
  let read = new Map(); // layer -> promise of its pixels, of the tile that is shown

  const tile = () => tiles[state.tile];
  const layerOf = (key) => tile().layers.find((layer) => layer.key === key);
  const beneath = () => tile().layers.find((layer) => layer.key.startsWith("modality-"));

  function pixelsOf(layer) {
    if (!read.has(layer)) {
      const image = new Image();
      image.src = layer.uri;
      read.set(layer, image.decode().then(() => {
        const canvas = document.createElement("canvas");
        canvas.width = image.naturalWidth;
        canvas.height = image.naturalHeight;
        const context = canvas.getContext("2d", { willReadFrequently: true });
        context.drawImage(image, 0, 0);
        return context.getImageData(0, 0, canvas.width, canvas.height);
      }));
    }
    return read.get(layer);
  }

  const hex = (data, i) =>
    "#" + [data[i], data[i + 1], data[i + 2]].map((value) => value.toString(16).padStart(2, "0")).join("");

  function put(image, layer) {
    if (layer) image.src = layer.uri;
    else image.removeAttribute("src");
    image.hidden = !layer;
  }

  function words(layer) {
    return layer ? `${layer.title} of ${tile().name}: ${layer.how}` : `not written for ${tile().name}`;
  }

  function show() {
    for (const [side, half] of Object.entries(sides)) {
      const layer = layerOf(state[side]);
      const picture = half.querySelector(".layer");
      put(picture, layer);
      picture.alt = words(layer);
      put(half.querySelector(".base"), layer && layer.sparse ? beneath() : null);
      at(`tag-${side}`).textContent = layer ? layer.title : "not written";
      single(half, layer);
    }
    const layers = ["left", "right"].map((side) => layerOf(state[side])).filter(Boolean);
    at("layer-words").textContent = layers.map((layer) => `${layer.title}: ${layer.how}.`).join(" ");
    place();
  }

  // One class alone: the others fade.
  async function single(half, layer) {
    const canvas = half.querySelector("canvas"), picture = half.querySelector(".layer");
    const wanted = state.alone;
    if (wanted === null || !layer || !layer.classes) {
      canvas.hidden = true;
      picture.style.visibility = "";
      return;
    }
    const source = await pixelsOf(layer);
    if (state.alone !== wanted || layerOf(state[half.id]) !== layer) return;
    const values = new Uint8ClampedArray(source.data);
    for (let i = 0; i < values.length; i += 4) {
      if (values[i + 3] && layer.names[hex(values, i)] !== wanted) values[i + 3] = 36;
    }
    canvas.width = source.width;
    canvas.height = source.height;
    canvas.getContext("2d").putImageData(new ImageData(values, source.width, source.height), 0, 0);
    canvas.hidden = false;
    picture.style.visibility = "hidden";
  }

  function cut() {
    return ((pane.scrollLeft + (pane.clientWidth * state.place) / 100) / sheet.offsetWidth) * 100;
  }

  function place() {
    if (!sheet.offsetWidth) return; // not laid out, as on paper
    const percent = cut();
    sides.left.style.clipPath = `inset(0 ${100 - percent}% 0 0)`;
    sides.right.style.clipPath = `inset(0 0 0 ${percent}%)`;
    handle.style.left = `${state.place}%`;
    handle.setAttribute("aria-valuenow", String(Math.round(state.place)));
    const [left, right] = ["left", "right"].map((side) => at(`tag-${side}`).textContent);
    handle.setAttribute("aria-valuetext", `${Math.round(state.place)}% ${left}, the rest ${right}`);
    for (const picture of sheet.querySelectorAll("img, canvas")) {
      const own = picture.naturalWidth || picture.width || 1;
      picture.classList.toggle("fine", sheet.offsetWidth * devicePixelRatio > own);
    }
    scale();
  }

  function scale() {
    const metres = tile().metres;
    at("scale").hidden = !metres;
    if (!metres) return;
    const perPixel = (metres * tile().width) / sheet.offsetWidth;
    const most = perPixel * Math.min(140, frame.clientWidth / 3);
    const power = 10 ** Math.floor(Math.log10(most));
    const length = [5, 2, 1].map((factor) => factor * power).find((value) => value <= most);
    at("scale").firstElementChild.textContent = length >= 1000 ? `${length / 1000} km` : `${+length.toPrecision(3)} m`;
    at("scale").style.width = `calc(${length / perPixel}px + 1rem)`;
  }

  function swipeTo(percent) {
    state.place = Math.min(100, Math.max(0, percent));
    place();
  }

  // The place of the map that is `from` stays at `to`, both in px from the corner of the pane; by default its middle.
  function zoomTo(zoom, from = [pane.clientWidth / 2, pane.clientHeight / 2], to = from) {
    const x = (pane.scrollLeft + from[0]) / sheet.offsetWidth, y = (pane.scrollTop + from[1]) / sheet.offsetHeight;
    state.zoom = Math.min(LARGEST_ZOOM, Math.max(1, zoom));
    sheet.style.setProperty("--zoom", state.zoom);
    pane.classList.toggle("zoomed", state.zoom > 1);
    pane.scrollLeft = x * sheet.offsetWidth - to[0];
    pane.scrollTop = y * sheet.offsetHeight - to[1];
    at("zoom").textContent = `${+state.zoom.toFixed(1)}×`;
    place();
  }

  function choose(number) {
    state.tile = (number + tiles.length) % tiles.length;
    for (const button of document.querySelectorAll(".to-tile")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.tile) === state.tile));
    }
    read = new Map();
    frame.style.setProperty("--ratio", tile().width / tile().height);
    at("tile-words").textContent = tile().words;
    if (at("tile")) at("tile").value = String(state.tile);
    if (at("printed-tile")) at("printed-tile").textContent = tile().name;
    for (const figure of gallery) {
      const layer = layerOf(figure.dataset.key);
      put(figure.querySelector(".layer"), layer);
      figure.querySelector(".layer").alt = words(layer);
      put(figure.querySelector(".base"), layer && layer.sparse ? beneath() : null);
    }
    show();
  }

  async function describe(event) {
    const box = sheet.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
    if (x < 0 || y < 0 || x >= 1 || y >= 1) {
      tip.hidden = true;
      return;
    }
    const lines = [];
    for (const key of new Set([state.left, state.right])) {
      const layer = layerOf(key);
      if (!layer || !Object.keys(layer.names).length) continue;
      const source = await pixelsOf(layer);
      const i = (Math.floor(y * source.height) * source.width + Math.floor(x * source.width)) * 4;
      lines.push(`${layer.title}: ${source.data[i + 3] ? layer.names[hex(source.data, i)] || "?" : "none"}`);
    }
    const col = Math.floor(x * tile().width), row = Math.floor(y * tile().height);
    lines.push(`row ${row}, column ${col}`);
    if (tile().transform) {
      const [a, b, c, d, e, f] = tile().transform;
      const digits = Math.max(0, Math.ceil(-Math.log10(Math.abs(a) + Math.abs(b))));
      const [east, north] = [a * (col + .5) + b * (row + .5) + c, d * (col + .5) + e * (row + .5) + f];
      lines.push(`${east.toFixed(digits)}, ${north.toFixed(digits)}`);
    }
    tip.textContent = lines.join("\n");
    tip.hidden = false;
    const within = frame.getBoundingClientRect();
    const left = event.clientX - within.left, top = event.clientY - within.top;
    tip.style.left = `${left > within.width / 2 ? left - tip.offsetWidth - 14 : left + 14}px`;
    tip.style.top = `${top > within.height / 2 ? top - tip.offsetHeight - 14 : top + 14}px`;
  }

  function follow(target, start) {
    target.addEventListener("pointerdown", (event) => {
      const move = start(event);
      if (!move) return;
      target.setPointerCapture(event.pointerId);
      const end = () => {
        target.removeEventListener("pointermove", move);
        target.classList.remove("held");
      };
      target.classList.add("held");
      target.addEventListener("pointermove", move);
      target.addEventListener("pointerup", end, { once: true });
      target.addEventListener("pointercancel", end, { once: true });
    });
  }

  follow(handle, (event) => {
    event.preventDefault();
    handle.focus({ preventScroll: true });
    const box = frame.getBoundingClientRect();
    const off = event.clientX - box.left - (box.width * state.place) / 100;
    return (moved) => swipeTo(((moved.clientX - box.left - off) / box.width) * 100);
  });
  follow(pane, (event) => {
    if (state.zoom === 1 || event.pointerType !== "mouse" || event.button) return null;
    const [x, y, left, top] = [event.clientX, event.clientY, pane.scrollLeft, pane.scrollTop];
    return (moved) => pane.scrollTo(left + x - moved.clientX, top + y - moved.clientY);
  });
  // Two fingers zoom and move; one finger moves by the browser's own scrolling.
  let pinch = null; // distance and middle of the fingers
  function fingers(event) {
    const [a, b] = event.touches, box = pane.getBoundingClientRect();
    const middle = [(a.clientX + b.clientX) / 2 - box.left, (a.clientY + b.clientY) / 2 - box.top];
    return { apart: Math.max(1, Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY)), middle };
  }
  for (const kind of ["touchstart", "touchmove", "touchend", "touchcancel"]) {
    pane.addEventListener(kind, (event) => {
      if (event.touches.length !== 2) {
        pinch = null;
        return;
      }
      event.preventDefault();
      const now = fingers(event);
      if (pinch && kind === "touchmove") zoomTo((state.zoom * now.apart) / pinch.apart, pinch.middle, now.middle);
      pinch = now;
    }, { passive: false });
  }
  handle.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 10 : 1;
    const places = {
      ArrowLeft: state.place - step, ArrowDown: state.place - step, PageDown: state.place - 10, Home: 0,
      ArrowRight: state.place + step, ArrowUp: state.place + step, PageUp: state.place + 10, End: 100,
    };
    if (!(event.key in places)) return;
    event.preventDefault();
    swipeTo(places[event.key]);
  });
  pane.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "+" || event.key === "=") zoomTo(state.zoom * 2);
    else if (event.key === "-") zoomTo(state.zoom / 2);
    else return;
    event.preventDefault();
  });
  pane.addEventListener("scroll", place, { passive: true });
  pane.addEventListener("pointermove", describe);
  pane.addEventListener("pointerdown", describe);
  pane.addEventListener("pointerleave", () => { tip.hidden = true; });
  at("in").addEventListener("click", () => zoomTo(state.zoom * 2));
  at("out").addEventListener("click", () => zoomTo(state.zoom / 2));
  at("whole").addEventListener("click", () => zoomTo(1));
  for (const radio of document.querySelectorAll(".sides input")) {
    radio.addEventListener("change", () => {
      state[radio.name] = radio.value;
      show();
    });
    if (radio.checked) state[radio.name] = radio.value; // browsers keep the choice over a reload
  }
  for (const button of document.querySelectorAll("button[data-class]")) {
    button.addEventListener("click", () => {
      state.alone = state.alone === button.dataset.class ? null : button.dataset.class;
      for (const other of document.querySelectorAll("button[data-class]")) {
        other.setAttribute("aria-pressed", String(other.dataset.class === state.alone));
      }
      show();
    });
  }
  for (const button of document.querySelectorAll(".to-tile")) {
    button.addEventListener("click", () => {
      choose(Number(button.dataset.tile));
      at("map").scrollIntoView();
    });
  }
  if (at("tile")) {
    at("tile").addEventListener("change", (event) => choose(Number(event.target.value)));
    at("before").addEventListener("click", () => choose(state.tile - 1));
    at("after").addEventListener("click", () => choose(state.tile + 1));
  }
  sheet.addEventListener("load", place, true); // a picture's own size is known only then
  window.addEventListener("resize", place);
  choose(at("tile") ? Number(at("tile").value) : 0);
})();
