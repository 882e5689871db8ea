/** Tables and diagrams beside the panes. */

export function mountPanels({ header, panels }, store) {}
