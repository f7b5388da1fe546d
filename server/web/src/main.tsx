import "./app.css";
import { render } from "preact";
import { App } from "./app";
import { connect } from "./state";
import { list } from "./history";

render(<App />, document.body);
void connect();
void list();
