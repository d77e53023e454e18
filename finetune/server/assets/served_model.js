// What the server says of its model.
import { requestJson } from "./requests.js";

export let model = null;

export async function loadModel() {
  model = await requestJson("metadata");
}
