package environment

import (
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"

	atelier "github.com/atelier-edge/atelier"
)

var (
	condaPython = regexp.MustCompile(`^python\s*(?:={1,2}\s*(3\.[0-9]{1,2})(?:\.\*)?)?$`)
	condaPip    = regexp.MustCompile(`^pip\s*(?:[=<>~!].*)?$`)
)

// ParseConda reads the text of a conda file and returns the version of Python that
// it asks for, "" for none, and what its pip section requires, in normal form. The
// name and the channels say nothing about that and are passed over, as is the version
// of pip. What is to come from conda is refused: a builder has wheels only.
func ParseConda(text string) (python string, requirements []string, err error) {
	if err := checkText(text); err != nil {
		return "", nil, err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		return "", nil, atelier.Errorf(atelier.Invalid, "the conda file is no YAML: %s", strings.TrimPrefix(err.Error(), "yaml: ")).
			WithRemedy("Give a requirements.txt, or a file such as 'conda env export' writes.")
	}
	if doc.Kind == 0 || len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return "", nil, atelier.Errorf(atelier.Invalid, "the conda file has no entries such as 'dependencies:'").
			WithRemedy("A requirements.txt has a name that ends in .txt; a conda file's ends in .yml or .yaml.")
	}
	c := conda{}
	for key, value := range pairs(doc.Content[0]) {
		switch key.Value {
		case "name", "channels":
		case "dependencies":
			if err := c.dependencies(value); err != nil {
				return "", nil, err
			}
		default:
			return "", nil, refused(key.Line, "Leave it out; an environment has 'dependencies' only.", "%.80q is not taken", key.Value)
		}
	}
	return c.python, c.requirements, nil
}

// conda is what was read so far.
type conda struct {
	python       string
	requirements []string
}

// pairs yields the keys of a mapping with their values.
func pairs(m *yaml.Node) func(yield func(key, value *yaml.Node) bool) {
	return func(yield func(key, value *yaml.Node) bool) {
		for i := 0; i+1 < len(m.Content); i += 2 {
			if !yield(m.Content[i], m.Content[i+1]) {
				return
			}
		}
	}
}

func (c *conda) dependencies(list *yaml.Node) error {
	if list.Kind != yaml.SequenceNode {
		return refused(list.Line, "", "the dependencies are no list")
	}
	for _, d := range list.Content {
		var err error
		switch d.Kind {
		case yaml.ScalarNode:
			err = c.dependency(d)
		case yaml.MappingNode:
			err = c.section(d)
		default:
			err = refused(d.Line, "", "a dependency is a name, or the section 'pip:'")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// dependency takes what would come from conda: only Python and pip themselves.
func (c *conda) dependency(d *yaml.Node) error {
	text := strings.TrimSpace(d.Value)
	if condaPip.MatchString(text) {
		return nil
	}
	if parts := condaPython.FindStringSubmatch(text); parts != nil {
		if c.python != "" && parts[1] != "" && parts[1] != c.python {
			return refused(d.Line, "", "Python %s is asked for after %s", parts[1], c.python)
		}
		if parts[1] != "" {
			c.python = parts[1]
		}
		return nil
	}
	if strings.HasPrefix(text, "python") && !plainName.MatchString(text) {
		return refused(d.Line, "Write it as python=3.11: the patch level is the newest that the builder has.", "%.120q is no version of Python by its first two numbers", text)
	}
	return refused(d.Line, "Move it into the section 'pip:', by the name that it has there.", "%.120q is a package of conda; only what pip installs can be built", text)
}

// section takes the section of pip.
func (c *conda) section(d *yaml.Node) error {
	for key, list := range pairs(d) {
		if key.Value != "pip" {
			return refused(key.Line, "Leave it out, or move it into the section 'pip:'.", "%.80q is not taken; 'pip' is", key.Value)
		}
		if list.Kind != yaml.SequenceNode {
			return refused(list.Line, "", "the section 'pip' is no list")
		}
		for _, r := range list.Content {
			if r.Kind != yaml.ScalarNode {
				return refused(r.Line, "", "a requirement of pip is one line of text")
			}
			text := strings.TrimSpace(withoutComment(r.Value))
			if text == "" || strings.ContainsAny(text, "\n\r") {
				return refused(r.Line, plainRemedy, "a requirement of pip is one line of text")
			}
			one, err := parseRequirement(text, r.Line)
			if err != nil {
				return err
			}
			c.requirements = append(c.requirements, one)
		}
	}
	return nil
}
