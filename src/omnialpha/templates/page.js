"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = id => document.getElementById(id);

// ---- what is kept in the browser, and saved from it ----
function stored(slot) {
  try {
    return JSON.parse(localStorage.getItem(slot)) || {};
  } catch {
    return {};
  }
}
function store(slot, value) {
  try {
    localStorage.setItem(slot, JSON.stringify(value));
  } catch {
    at("warning").textContent = "This browser keeps nothing: save your answers before you close the page.";
  }
}
function download(name, value) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(value, null, 1) + "\n"], {type: "application/json"}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
