"use strict";
// The JSON value that page.packed_data put into the element `id`: base64 of a deflated text.
async function unpack(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).json();
}
// A new element; texts become text nodes and never HTML.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
// A box that scrolls can be reached by the keyboard.
function letScroll(box) {
  for (const text of box.querySelectorAll(".text")) {
    if (text.scrollHeight > text.clientHeight + 1) text.tabIndex = 0;
  }
}
