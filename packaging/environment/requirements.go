package environment

import (
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	atelier "github.com/atelier-edge/atelier"
)

// ParseRequirements reads the text of a requirements.txt and returns what it
// requires in normal form. The form of files is pip's
// (https://pip.pypa.io/en/stable/reference/requirements-file-format/), that of lines
// PEP 508's. Taken are names with extras, versions, markers and --hash=sha256;
// options, addresses and paths are refused, since an environment that needs them
// could not be built again, or elsewhere.
func ParseRequirements(text string) ([]string, error) {
	if err := checkText(text); err != nil {
		return nil, err
	}
	if !utf8.ValidString(text) {
		return nil, atelier.Errorf(atelier.Invalid, "the requirements are no UTF-8 text")
	}
	var all []string
	for _, l := range logicalLines(strings.TrimPrefix(text, "\ufeff")) {
		r, err := parseRequirement(l.text, l.number)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

// line is one requirement, on one line or several joined by backslashes.
type line struct {
	number int // of the first, from 1
	text   string
}

func logicalLines(text string) []line {
	var lines []line
	var open *line
	for i, raw := range strings.Split(text, "\n") {
		raw = strings.TrimSuffix(raw, "\r")
		if open == nil {
			open = &line{number: i + 1}
		}
		// A comment ends a line, also one that a backslash would have gone on with.
		code := withoutComment(raw)
		before, continues := strings.CutSuffix(code, `\`)
		open.text += before + " "
		if continues && code == raw {
			continue
		}
		if open.text = strings.TrimSpace(open.text); open.text != "" {
			lines = append(lines, *open)
		}
		open = nil
	}
	if open != nil {
		if open.text = strings.TrimSpace(open.text); open.text != "" {
			lines = append(lines, *open)
		}
	}
	return lines
}

// withoutComment cuts a comment off: from a '#' at the beginning or after a space.
func withoutComment(s string) string {
	for i := range len(s) {
		if s[i] == '#' && (i == 0 || s[i-1] == ' ' || s[i-1] == '\t') {
			return s[:i]
		}
	}
	return s
}

var (
	nameAndExtras = regexp.MustCompile(`^([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?:\[([^\]]*)\])?\s*(.*)$`)
	plainName     = regexp.MustCompile(`^[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?$`)
	separators    = regexp.MustCompile(`[-_.]+`)
	specifier     = regexp.MustCompile(`^(===|~=|==|!=|<=|>=|<|>)\s*([A-Za-z0-9.*+!_-]+)$`)
	hashOption    = regexp.MustCompile(`\s--hash[=\s]\s*(\S+)`)
	sha256Hash    = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

const plainRemedy = "Write requirements as NAME, NAME==VERSION or NAME>=VERSION,<VERSION."

// parseRequirement returns one requirement in normal form.
func parseRequirement(text string, at int) (string, error) {
	if len(text) > maxLine {
		return "", refused(at, "", "the requirement has %d bytes; at most %d are taken", len(text), maxLine)
	}
	if err := refuseOthers(text, at); err != nil {
		return "", err
	}
	text, hashes, err := cutHashes(text, at)
	if err != nil {
		return "", err
	}
	requirement, marker, marked := strings.Cut(text, ";")
	parts := nameAndExtras.FindStringSubmatch(strings.TrimSpace(requirement))
	if parts == nil {
		return "", refused(at, plainRemedy, "%.120q does not begin with the name of a package", text)
	}
	var out strings.Builder
	out.WriteString(normalName(parts[1]))
	extras, err := normalExtras(parts[2], at)
	if err != nil {
		return "", err
	}
	out.WriteString(extras)
	versions, err := normalVersions(parts[3], at)
	if err != nil {
		return "", err
	}
	out.WriteString(versions)
	if marked {
		m, err := normalMarker(marker, at)
		if err != nil {
			return "", err
		}
		out.WriteString("; " + m)
	}
	for _, h := range hashes {
		out.WriteString(" --hash=" + h)
	}
	return out.String(), nil
}

// refuseOthers says of what is no plain requirement what it is.
func refuseOthers(text string, at int) error {
	option, _, _ := strings.Cut(text, " ")
	option, _, _ = strings.Cut(option, "=")
	switch {
	case strings.HasPrefix(text, "-e") || option == "--editable":
		return refused(at, "Publish the package to the index that the builder's pip uses, and require it by name.", "%.120q installs from a directory of the machine where it is written, which a builder does not have", text)
	case option == "-r" || option == "--requirement" || option == "-c" || option == "--constraint" || strings.HasPrefix(text, "-r") || strings.HasPrefix(text, "-c"):
		return refused(at, "Put what that file says into this one.", "%.120q refers to another file, and only this one is sent", text)
	case option == "-i" || strings.HasSuffix(option, "index-url") || option == "--no-index" || option == "-f" || option == "--find-links" || option == "--trusted-host":
		return refused(at, "Leave it out here, and set the index in the configuration of pip on the builder's machine (pip.conf).", "%.120q chooses where packages come from, which is the builder's to say", text)
	case strings.HasPrefix(text, "-"):
		return refused(at, "Leave the option out.", "options such as %.120q are not taken", option)
	case strings.Contains(text, "://"), strings.HasPrefix(text, "git+"), directReference.MatchString(text):
		return refused(at, "Publish the package to the index that the builder's pip uses, and require it by name and version.", "%.120q is an address; packages are taken by name only, from the index", text)
	case strings.HasPrefix(text, "."), strings.HasPrefix(text, "/"), strings.HasPrefix(text, "~"), strings.ContainsAny(option, `/\`), packageFile.MatchString(text):
		return refused(at, "Publish the package to the index that the builder's pip uses, and require it by name and version.", "%.120q is a file or a directory, which a builder does not have", text)
	case strings.ContainsAny(text, "$"):
		return refused(at, "Write the value itself.", "%.120q takes something from the environment of the machine, which is another on the builder", text)
	}
	return nil
}

var (
	directReference = regexp.MustCompile(`^[^;]*@`)
	packageFile     = regexp.MustCompile(`\.(whl|zip|tar\.gz|tar\.bz2|tgz)$`)
)

// cutHashes takes the --hash options off a requirement.
func cutHashes(text string, at int) (rest string, hashes []string, err error) {
	for _, h := range hashOption.FindAllStringSubmatch(text, -1) {
		if !sha256Hash.MatchString(h[1]) {
			return "", nil, refused(at, "Write --hash=sha256: and 64 hexadecimal digits, or leave the hashes out.", "%.120q is no SHA-256", h[1])
		}
		hashes = append(hashes, h[1])
	}
	rest = strings.TrimSpace(hashOption.ReplaceAllString(text, ""))
	if _, option, found := strings.Cut(rest, " --"); found {
		option, _, _ = strings.Cut(option, "=")
		return "", nil, refused(at, "Leave the option out.", "options such as %.120q are not taken", "--"+option)
	}
	slices.Sort(hashes)
	return rest, slices.Compact(hashes), nil
}

// normalName returns a name in the form in which equal names are equal (PEP 503).
func normalName(name string) string {
	return strings.ToLower(separators.ReplaceAllString(name, "-"))
}

func normalExtras(text string, at int) (string, error) {
	var extras []string
	for e := range strings.SplitSeq(text, ",") {
		if e = strings.TrimSpace(e); e == "" {
			continue
		}
		if !plainName.MatchString(e) {
			return "", refused(at, "", "%.120q is not the name of an extra", e)
		}
		extras = append(extras, normalName(e))
	}
	if len(extras) == 0 {
		return "", nil
	}
	slices.Sort(extras)
	return "[" + strings.Join(slices.Compact(extras), ",") + "]", nil
}

func normalVersions(text string, at int) (string, error) {
	text = strings.TrimSpace(text)
	if inner, ok := strings.CutPrefix(text, "("); ok {
		if text, ok = strings.CutSuffix(inner, ")"); !ok {
			return "", refused(at, plainRemedy, "the bracket in %.120q is not closed", inner)
		}
	}
	if strings.TrimSpace(text) == "" {
		return "", nil
	}
	var all []string
	for v := range strings.SplitSeq(text, ",") {
		parts := specifier.FindStringSubmatch(strings.TrimSpace(v))
		if parts == nil {
			return "", refused(at, plainRemedy, "%.120q is no bound of a version", strings.TrimSpace(v))
		}
		all = append(all, parts[1]+parts[2])
	}
	slices.Sort(all)
	return strings.Join(slices.Compact(all), ","), nil
}

var (
	markerToken = regexp.MustCompile(`^(?:'[^'"\\]*'|"[^'"\\]*"|===|~=|==|!=|<=|>=|<|>|\(|\)|[a-z_]+)`)
	markerWords = []string{
		"and", "or", "in", "not",
		"python_version", "python_full_version", "os_name", "sys_platform", "platform_release", "platform_system", "platform_version",
		"platform_machine", "platform_python_implementation", "implementation_name", "implementation_version",
	}
)

// normalMarker returns a marker with one space between its parts. Whether it makes
// sense is pip's to say.
func normalMarker(text string, at int) (string, error) {
	var parts []string
	for rest := strings.TrimSpace(text); rest != ""; rest = strings.TrimSpace(rest) {
		token := markerToken.FindString(rest)
		if word := strings.Trim(token, "abcdefghijklmnopqrstuvwxyz_") == "" && token != ""; token == "" || word && !slices.Contains(markerWords, token) {
			return "", refused(at, "", "%.80q is no part of a marker such as python_version < '3.12'", rest)
		}
		if token[0] == '\'' {
			token = `"` + token[1:len(token)-1] + `"`
		}
		parts = append(parts, token)
		rest = rest[len(markerToken.FindString(rest)):]
	}
	if len(parts) == 0 {
		return "", refused(at, "", "there is no marker after the semicolon")
	}
	return strings.Join(parts, " "), nil
}
