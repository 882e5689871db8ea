/**
 * The files that someone has chosen, by role. Files without a role wait until they are given one.
 *
 * @typedef {import("./sources.js").Source} Source
 * @typedef {import("./sources.js").Role} Role
 */

import { ROLES } from "./sources.js";

/** Returns whether files that come together are a case of their own: a prediction, and what it is about. */
export function isCase(group) {
  const roles = new Set(group.map(({ role }) => role));
  return roles.has("prediction") && (roles.has("truth") || roles.has("photo"));
}

export class Files {
  /** @type {Object<Role, ?Source>} */
  byRole = { photo: null, prediction: null, truth: null, second: null, palette: null };
  /** @type {Source[]} */
  unassigned = [];

  /**
   * Gives each source of a group its role; one that has the role already is replaced. A prediction
   * that comes alone is put beside the first one, unless it has the same name.
   * @param {Source[]} group
   */
  add(group) {
    if (isCase(group)) {
      this.byRole.prediction = null;
      this.byRole.second = null;
    }
    const filled = new Set();
    const rest = [];
    for (const source of group) {
      const first = this.byRole.prediction;
      const isSecond = source.role === "prediction" && first !== null && first.name !== source.name;
      const role = isSecond ? "second" : source.role;
      if (role === null || filled.has(role)) {
        rest.push(source);
        continue;
      }
      filled.add(role);
      this.byRole[role] = source;
    }
    // A map of classes without a role in its name can only be the input that is missing.
    const missing = ["prediction", "truth"].filter((role) => this.byRole[role] === null);
    if (rest.length === 1 && rest[0].role === null && missing.length === 1) {
      this.byRole[missing[0]] = rest.pop();
    }
    this.unassigned.push(...rest);
  }

  /**
   * Gives a source another role, and its former role to the source that had that one.
   * @param {Source} source
   * @param {Role} role
   */
  assign(source, role) {
    const former = this.roleOf(source);
    const displaced = this.byRole[role];
    this.unassigned = this.unassigned.filter((entry) => entry !== source);
    if (former !== null) this.byRole[former] = displaced;
    else if (displaced !== null) this.unassigned.push(displaced);
    this.byRole[role] = source;
  }

  /** @param {Source} source */
  remove(source) {
    const role = this.roleOf(source);
    if (role !== null) this.byRole[role] = null;
    this.unassigned = this.unassigned.filter((entry) => entry !== source);
    if (this.byRole.prediction === null && this.byRole.second !== null) {
      this.byRole.prediction = this.byRole.second;
      this.byRole.second = null;
    }
  }

  /**
   * @param {Source} source
   * @returns {?Role}
   */
  roleOf(source) {
    return Object.keys(ROLES).find((role) => this.byRole[role] === source) ?? null;
  }

  /** The sources that have a role, and those that have none. */
  get all() {
    return [...Object.values(this.byRole).filter((source) => source !== null), ...this.unassigned];
  }
}
