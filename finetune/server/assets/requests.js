// Requests to the server, with the token that it may need.
import { say } from "./elements.js";

const MAX_ATTEMPTS = 4;
const TOKEN_KEY = "finetune-token";
let token = takeToken();

/** Return the token of the address (#token=...), which leaves the address, or that of before. */
function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given !== null) {
    history.replaceState(null, "", location.pathname);
    sessionStorage.setItem(TOKEN_KEY, given);
  }
  return given ?? sessionStorage.getItem(TOKEN_KEY);
}

export class AnswerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const wait = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

export async function request(path, options = {}) {
  const headers = token === null ? {} : { Authorization: `Bearer ${token}` };
  for (let attempt = 1; ; attempt += 1) {
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch {
      throw new AnswerError("The server cannot be reached. Is it still running?", 0);
    }
    if (response.ok) return response;
    const retry = Number(response.headers.get("Retry-After"));
    if (response.status === 429 && attempt < MAX_ATTEMPTS) {
      say(`The server is busy; trying again in ${retry} s …`);
      await wait(retry || 1);
      continue;
    }
    const body = await response.json().catch(() => ({}));
    throw new AnswerError(body.detail ?? `The server answered ${response.status}.`, response.status);
  }
}

export const requestJson = async (path, options) => (await request(path, options)).json();

export const hasToken = () => token !== null;

export function keepToken(text) {
  token = text;
  sessionStorage.setItem(TOKEN_KEY, token);
}
