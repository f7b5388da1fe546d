package openai

import (
	"bytes"
	"fmt"
)

// functions are the tools of a chat, which the model's template shows. None where the model is not to call any.
func (o object) functions() []byte {
	list := o.list("tools")
	for i := range list {
		path := fmt.Sprintf("%stools[%d]", o.path, i)
		if list[i].kind != kindObject {
			o.wrongType(path, &list[i], "an object")
			return nil
		}
		tool := o.reading.object(path+".", &list[i])
		if tool.required("type", "function") != "function" {
			o.fault(path+".type", CodeUnsupported, "not supported; want function")
		}
		tool.function("a function with a name")
	}
	tools := o.node.member("tools")
	o.legacyTools()
	if choice := o.choice(); len(list) == 0 || choice == "none" {
		return nil
	}
	return bytes.Clone(tools.raw)
}

// function reads the name of a function.
func (o object) function(want string) {
	f := o.sub("function")
	if f == nil {
		o.fault(o.path+"function", CodeMissing, "none; want %s", want)
		return
	}
	f.required("name", "a string")
}

// calls are an assistant's calls of tools; nil for none.
func (o object) calls() []byte {
	list := o.list("tool_calls")
	for i := range list {
		path := fmt.Sprintf("%stool_calls[%d]", o.path, i)
		if list[i].kind != kindObject {
			o.wrongType(path, &list[i], "an object")
			return nil
		}
		o.reading.object(path+".", &list[i]).function("what was called, with a name and arguments")
	}
	if len(list) == 0 {
		return nil
	}
	return bytes.Clone(o.node.member("tool_calls").raw)
}

// tools refuses what this endpoint does not do, and takes what asks for none of it.
func (o object) tools() {
	if n := o.get("tools"); n != nil && (n.kind != kindList || len(n.list) > 0) {
		o.fault(o.path+"tools", CodeUnsupported, "not supported; want none, or an empty list")
	}
	o.legacyTools()
	o.choice()
}

// legacyTools refuses what came before tools.
func (o object) legacyTools() {
	if n := o.get("functions"); n != nil && (n.kind != kindList || len(n.list) > 0) {
		o.fault(o.path+"functions", CodeUnsupported, "not supported; want none, or an empty list")
	}
	o.known("parallel_tool_calls")
}

// choice is tool_choice, of which none and auto are taken.
func (o object) choice() (choice string) {
	for _, name := range []string{"tool_choice", "function_call"} {
		n := o.get(name)
		if n == nil {
			continue
		}
		if n.kind != kindText || n.text() != "none" && n.text() != "auto" {
			o.fault(o.path+name, CodeUnsupported, "not supported; want none or auto")
			return ""
		}
		if name == "tool_choice" {
			choice = n.text()
		}
	}
	return choice
}
