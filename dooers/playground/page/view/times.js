// Times as people say them.

const DAY = 86_400_000;
const made = (options) => {
  const format = new Intl.DateTimeFormat(undefined, options);
  return (text) => {
    const date = new Date(text);
    return Number.isNaN(date.getTime()) ? "" : format.format(date);
  };
};

export const clock = made({ hour: "2-digit", minute: "2-digit" });
export const moment = made({ dateStyle: "full", timeStyle: "medium" });
const weekday = made({ weekday: "short" });
const date = made({ day: "numeric", month: "short" });
const past = made({ day: "numeric", month: "short", year: "numeric" });

/** How many midnights ago it was. */
export function daysAgo(text, now) {
  const midnight = new Date(now).setHours(0, 0, 0, 0);
  const then = new Date(text).setHours(0, 0, 0, 0);
  return Math.round((midnight - then) / DAY);
}

/** Under which heading it belongs. */
export function group(text, now) {
  const days = daysAgo(text, now);
  if (!(days > 0)) return "Today";
  if (days === 1) return "Yesterday";
  return days < 7 ? "Last 7 days" : days < 30 ? "Last 30 days" : "Earlier";
}

/** As short as it can be said. */
export function short(text, now) {
  const days = daysAgo(text, now);
  if (!(days > 1)) return clock(text);
  if (days < 7) return weekday(text);
  return new Date(text).getFullYear() === new Date(now).getFullYear() ? date(text) : past(text);
}
