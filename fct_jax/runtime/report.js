"use strict";
// Beside the pointer: the values of all curves of a panel at the nearest point of the x axis.
const values = document.getElementById("values");
for (const panel of document.querySelectorAll("svg.panel")) {
  const points = [...panel.querySelectorAll("circle.point")];
  const line = panel.querySelector("path.at");
  for (const title of panel.querySelectorAll("title")) title.remove(); // the box says more
  const hide = () => {
    values.hidden = true;
    line.setAttribute("visibility", "hidden");
    for (const point of points) point.classList.remove("on");
  };
  const show = (event) => {
    const box = panel.getBoundingClientRect();
    const x = (event.clientX - box.left) * panel.viewBox.baseVal.width / box.width;
    let nearest = null;
    for (const point of points) {
      const far = Math.abs(point.cx.baseVal.value - x);
      if (nearest === null || far < nearest.far) nearest = { far, at: point.dataset.at, cx: point.cx.baseVal.value };
    }
    if (nearest === null) return;
    const heading = document.createElement("div");
    heading.textContent = `${panel.dataset.x}: ${nearest.at}`;
    const table = document.createElement("table");
    for (const point of points) {
      const on = point.dataset.at === nearest.at;
      point.classList.toggle("on", on);
      if (!on) continue;
      const row = table.insertRow();
      row.className = point.getAttribute("class");
      row.insertCell().textContent = point.dataset.name;
      row.insertCell().textContent = point.dataset.value;
    }
    values.replaceChildren(heading, table);
    values.hidden = false;
    line.setAttribute("visibility", "visible");
    line.setAttribute("transform", `translate(${nearest.cx} 0)`);
    const wide = values.offsetWidth, high = values.offsetHeight;
    const right = event.clientX + 14 + wide > innerWidth;
    const left = right ? event.clientX - 14 - wide : event.clientX + 14;
    values.style.left = `${Math.max(4, Math.min(left, innerWidth - wide - 4))}px`;
    values.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - high - 4))}px`;
  };
  panel.addEventListener("pointermove", show);
  panel.addEventListener("pointerdown", show);
  panel.addEventListener("pointerleave", hide);
}
