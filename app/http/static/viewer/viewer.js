/** The panes. */

export function mountViewer(viewer, store) {}
