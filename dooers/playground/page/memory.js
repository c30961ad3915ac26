// What outlives a reload: who one is, what is not sent yet, which thread is looked at. The browser's storage and the page's address.

// Who was connected as lately, for the identity panel.
const LATELY = 6;

/** Which thread is looked at: the address says it, so that a reload and the back button find it. */
export function named() {
  try {
    return decodeURIComponent(location.hash.match(/^#\/(.+)$/)?.[1] ?? "") || null;
  } catch {
    return null; // no address of ours
  }
}

/** Have the address say it. */
export function address(id) {
  if (id === named()) return;
  const url = id === null ? location.pathname + location.search : `#/${encodeURIComponent(id)}`;
  history.pushState(null, "", url);
}

/** Remember something for this window; who one is also for the next new one. */
export function keep(name, value) {
  write("sessionStorage", name, value);
  if (name === "identity") write("localStorage", name, { ...value, auth_token: "" });
}

/** A list that was kept. */
export function recallList(name) {
  const known = read("sessionStorage", name);
  return Array.isArray(known) ? known : [];
}

function write(storage, name, value) {
  try {
    globalThis[storage].setItem(`dooers.${name}`, JSON.stringify(value));
  } catch {
    // No room, for a picture that is not sent yet, or storage is switched off: a reload forgets it then.
  }
}

function read(storage, name) {
  try {
    return JSON.parse(globalThis[storage].getItem(`dooers.${name}`));
  } catch {
    return null;
  }
}

// ---------------------------------------------------------------- identities

/** Who nobody in particular is. */
export const newIdentity = () => ({
  organization_id: "local",
  workspace_id: "local",
  user_id: "local",
  user_name: "",
  user_role: "",
  auth_token: "",
});

/** Who this window is, or the last one was. */
export const recallIdentity = () => whole(read("sessionStorage", "identity") ?? read("localStorage", "identity"));

/** An identity with all of its fields, whatever was kept, and by whichever version of the page. */
const whole = (known) =>
  Object.fromEntries(
    Object.entries(newIdentity()).map(([key, value]) => [key, typeof known?.[key] === "string" ? known[key] : value]),
  );

/** Who was connected as lately, newest first, without their tokens. */
export function recentIdentities() {
  const known = read("localStorage", "recent");
  return Array.isArray(known) ? known.slice(0, LATELY).map(whole) : [];
}

/** This is who was connected last. */
export function remember(identity) {
  const bare = { ...identity, auth_token: "" };
  const others = recentIdentities().filter((one) => !sameIdentity(one, bare));
  write("localStorage", "recent", [bare, ...others].slice(0, LATELY));
}

/** Whether two are the same person, whatever proves it. */
export const sameIdentity = (one, other) =>
  Object.keys(newIdentity()).every((key) => key === "auth_token" || one[key] === other[key]);
