package sbom

import (
	"bufio"
	"bytes"
	"strings"
)

// fields reads the header of a record: lines "Name: value", with lines that begin with
// white space belonging to the one before, up to the first empty one. fn gets each.
func fields(b []byte, fn func(name, value string)) (rest []byte) {
	name, value := "", ""
	flush := func() {
		if name != "" {
			fn(name, value)
		}
		name, value = "", ""
	}
	for len(b) > 0 {
		line, after, _ := bytes.Cut(b, []byte("\n"))
		b = after
		line = bytes.TrimRight(line, "\r")
		if len(line) == 0 {
			break
		}
		if line[0] == ' ' || line[0] == '\t' {
			if len(value) < maxText {
				line = bytes.TrimSpace(line)
				value += "\n" + string(line[:min(len(line), maxText)])
			}
			continue
		}
		flush()
		n, v, ok := strings.Cut(string(line), ":")
		if ok {
			v = strings.TrimSpace(v)
			name, value = strings.ToLower(strings.TrimSpace(n)), strings.Clone(v[:min(len(v), maxText)]) // the record itself does not stay
		}
	}
	flush()
	return b
}

// maxText bounds a value, and each line of one that goes over several, such as a licence's text.
const maxText = 4 << 10

// parsePython reads the core metadata of a Python distribution:
// https://packaging.python.org/en/latest/specifications/core-metadata/.
func parsePython(b []byte) []Package {
	p := Package{Kind: Python}
	expression, text := "", ""
	var classifiers []string
	fields(b, func(name, value string) {
		switch name {
		case "name":
			p.Name = value
		case "version":
			p.Version = value
		case "license-expression":
			expression = value
		case "license":
			text = value
		case "classifier":
			classifiers = append(classifiers, value)
		}
	})
	if p.Name == "" || strings.ContainsAny(p.Name, "\n\x00") {
		return nil
	}
	p.License = licenseOf(expression, text, classifiers)
	return []Package{p}
}

// parseDebian reads what dpkg keeps of the packages that are installed.
func parseDebian(b []byte) (list []Package) {
	for len(b) > 0 && len(list) <= maxRecords { // more are refused
		p := Package{Kind: Debian}
		installed := true
		b = fields(b, func(name, value string) {
			switch name {
			case "package":
				p.Name = value
			case "version":
				p.Version = value
			case "architecture":
				p.Arch = value
			case "status":
				installed = strings.HasSuffix(value, " installed")
			}
		})
		if p.Name != "" && installed {
			list = append(list, p)
		}
	}
	return list
}

// parseAlpine reads what apk keeps of the packages that are installed.
func parseAlpine(b []byte) (list []Package) {
	for len(b) > 0 && len(list) <= maxRecords { // more are refused
		p := Package{Kind: Alpine}
		// The names of fields are single letters, and differ by case.
		var stanza []byte
		stanza, b, _ = bytes.Cut(b, []byte("\n\n"))
		lines := bufio.NewScanner(bytes.NewReader(stanza))
		lines.Buffer(nil, maxMetadata)
		for lines.Scan() {
			name, value, _ := strings.Cut(lines.Text(), ":")
			switch name {
			case "P":
				p.Name = value
			case "V":
				p.Version = value
			case "A":
				p.Arch = value
			case "L":
				p.License = value
			}
		}
		if p.Name != "" {
			list = append(list, p)
		}
	}
	return list
}

// osRelease returns the ID of the distribution that a file os-release names.
func osRelease(b []byte) string {
	for line := range strings.Lines(string(b)) {
		if id, ok := strings.CutPrefix(strings.TrimSpace(line), "ID="); ok {
			return strings.ToLower(strings.Trim(id, `"'`))
		}
	}
	return ""
}
