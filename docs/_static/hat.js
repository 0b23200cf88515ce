// What scrolls sideways must be reachable by keyboard; the two side bars need different names.
function nameSideBars() {
  document.querySelector(".sidebar-drawer")?.setAttribute("aria-label", "Pages");
  document.querySelector(".toc-drawer")?.setAttribute("aria-label", "On this page");
}

function letWideThingsTakeFocus() {
  for (const box of document.querySelectorAll("pre, .table-wrapper")) {
    if (box.scrollWidth > box.clientWidth) {
      box.tabIndex = 0;
      if (box.matches(".table-wrapper")) {
        box.setAttribute("role", "group");
        box.setAttribute("aria-label", "Table that scrolls sideways");
      }
    } else {
      box.removeAttribute("tabindex");
    }
  }
}

function markLongCells() {
  for (const cell of document.querySelectorAll("table.docutils td")) {
    const letters = cell.textContent.replace(/[\u4e00-\u9fff]/g, "xx").length;
    cell.classList.toggle("long", letters > 30);
  }
}

nameSideBars();
markLongCells();
letWideThingsTakeFocus();
addEventListener("resize", letWideThingsTakeFocus);
