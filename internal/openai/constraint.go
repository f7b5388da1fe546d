package openai

// ConstraintKind says what an answer is held to.
type ConstraintKind int

const (
	// JSONObject is any JSON object.
	JSONObject ConstraintKind = iota
	// JSONSchema is JSON that a schema allows.
	JSONSchema
	// Regex is a match of an expression.
	Regex
	// Choices is one of texts.
	Choices
)

// Constraint is what an answer is held to: response_format, vLLM's structured_outputs, or its older guided fields.
type Constraint struct {
	Kind ConstraintKind
	// Text is the schema or the expression.
	Text string
	// Choices are the texts.
	Choices []string
	// Scores asks for the log-probability of each of them.
	Scores bool
	// Param is the field that asked for it.
	Param string
}

// constraint reads the fields that hold the answer to something; response_format goes before the others.
func (o object) constraint() *Constraint {
	guided := o.guided("guided_")
	if s := o.sub("structured_outputs"); s != nil {
		guided = s.guided("")
		s.done()
	}
	if c, given := o.responseFormat(); given {
		return c
	}
	return guided
}

// guided reads vLLM's fields, whose names begin with prefix.
func (o object) guided(prefix string) (c *Constraint) {
	if n := o.get(prefix + "json"); n != nil {
		c = o.schema(prefix+"json", n)
	}
	if text := o.str(prefix + "regex"); text != "" {
		c = &Constraint{Kind: Regex, Text: text, Param: o.path + prefix + "regex"}
	}
	if o.get(prefix+"choice") != nil {
		c = &Constraint{Kind: Choices, Choices: o.strs(prefix + "choice"), Param: o.path + prefix + "choice"}
	}
	if o.boolean(prefix + "json_object") {
		c = &Constraint{Kind: JSONObject, Param: o.path + prefix + "json_object"}
	}
	if n := o.get(prefix + "grammar"); n != nil {
		o.fault(o.path+prefix+"grammar", CodeUnsupported, "not supported; want a JSON schema, an expression or choices")
	}
	if name := prefix + "choice_scores"; o.boolean(name) {
		if c == nil || c.Kind != Choices {
			o.fault(o.path+name, CodeInvalidValue, "true; want false, or %schoice: scores are of choices", prefix)
			return c
		}
		c.Scores = true
	}
	return c
}

// schema is a member that is a JSON schema; vLLM takes it as a string, too.
func (o object) schema(name string, n *node) *Constraint {
	c := &Constraint{Kind: JSONSchema, Param: o.path + name}
	switch n.kind {
	case kindObject, kindTrue, kindFalse:
		c.Text = string(n.raw)
	case kindText:
		c.Text = n.text()
	default:
		o.wrongType(o.path+name, n, "a JSON schema")
	}
	return c
}

// responseFormat reads response_format; given is false where it asks for nothing.
func (o object) responseFormat() (c *Constraint, given bool) {
	f := o.sub("response_format")
	if f == nil {
		return nil, false
	}
	defer f.done()
	switch kind := f.str("type"); kind {
	case "", "text":
		return nil, false
	case "json_object":
		return &Constraint{Kind: JSONObject, Param: o.path + "response_format"}, true
	case "json_schema":
		if s := f.sub("json_schema"); s != nil {
			s.known("name", "description", "strict")
			defer s.done()
			if n := s.get("schema"); n != nil {
				return s.schema("schema", n), true
			}
		}
		o.fault(o.path+"response_format.json_schema.schema", CodeMissing, "none; want a JSON schema")
	default:
		o.fault(o.path+"response_format.type", CodeInvalidValue, "not known; want text, json_object or json_schema")
	}
	return nil, true
}
