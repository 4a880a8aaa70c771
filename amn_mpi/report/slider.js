const slider = document.getElementById("round");
const told = document.getElementById("told");
const drawings = document.querySelectorAll("#attention svg");
slider.addEventListener("input", () => {
  const frame = frames[slider.value];
  told.textContent = frame.round;
  for (const drawing of drawings)
    drawing.querySelectorAll("image").forEach((image, layer) => {
      image.setAttributeNS("http://www.w3.org/1999/xlink", "xlink:href", frame.layers[layer]);
    });
});
