/** Takes files that are dropped anywhere on the page. */

/**
 * @param {(files: File[]) => void} onFiles
 */
export function listenForDrops(onFiles) {
  // Dragging enters and leaves each element on its way.
  let depth = 0;
  const mark = (isDragging) => document.documentElement.classList.toggle("dragging", isDragging);
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files") ?? false;

  window.addEventListener("dragenter", (event) => {
    depth += 1;
    mark(hasFiles(event));
  });
  window.addEventListener("dragleave", () => {
    depth = Math.max(0, depth - 1);
    if (depth === 0) mark(false);
  });
  // Without both of these, the browser would open the file in place of the page.
  window.addEventListener("dragover", (event) => {
    event.preventDefault();
    if (hasFiles(event)) event.dataTransfer.dropEffect = "copy";
  });
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    mark(false);
    const files = [...(event.dataTransfer?.files ?? [])];
    if (files.length) onFiles(files);
  });
}
