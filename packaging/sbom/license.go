package sbom

import (
	"strings"
)

// known are licences that SPDX has an identifier for, by what people call them, in lower
// case: https://spdx.org/licenses/. The list has what Python distributions say; anything
// else is carried along as text.
var known = map[string]string{}

func init() {
	for _, id := range strings.Fields(`0BSD AFL-2.1 AFL-3.0 AGPL-3.0-only AGPL-3.0-or-later Apache-1.1 Apache-2.0 Artistic-1.0 Artistic-2.0
		BSD-1-Clause BSD-2-Clause BSD-3-Clause BSD-3-Clause-Clear BSD-4-Clause BSL-1.0 BlueOak-1.0.0 CC-BY-3.0 CC-BY-4.0 CC-BY-SA-4.0 CC0-1.0
		CDDL-1.0 CECILL-2.1 CNRI-Python ECL-2.0 EPL-1.0 EPL-2.0 EUPL-1.1 EUPL-1.2 FSFAP FTL GFDL-1.3-only GFDL-1.3-or-later GPL-1.0-or-later
		GPL-2.0-only GPL-2.0-or-later GPL-3.0-only GPL-3.0-or-later HPND ICU IJG IPL-1.0 ISC JSON LGPL-2.0-only LGPL-2.0-or-later LGPL-2.1-only
		LGPL-2.1-or-later LGPL-3.0-only LGPL-3.0-or-later LPPL-1.3c Libpng MIT MIT-0 MIT-CMU MPL-1.1 MPL-2.0 MS-PL NCSA NIST-PD OFL-1.1 OLDAP-2.8
		OSL-3.0 OpenSSL PHP-3.01 PSF-2.0 PostgreSQL Python-2.0 Python-2.0.1 QPL-1.0 Ruby SGI-B-2.0 SISSL TCL UPL-1.0 Unicode-3.0
		Unicode-DFS-2016 Unlicense Vim W3C WTFPL X11 XFree86-1.1 ZPL-2.0 ZPL-2.1 Zlib bzip2-1.0.6 curl libtiff zlib-acknowledgement`) {
		known[strings.ToLower(id)] = id
	}
	for id, names := range map[string]string{
		"Apache-2.0":        "apache 2.0|apache 2|apache license 2.0|apache license, version 2.0|apache software license|apache software license 2.0|apache license version 2.0|apache",
		"BSD-2-Clause":      "bsd 2-clause|2-clause bsd|simplified bsd",
		"BSD-3-Clause":      "bsd 3-clause|3-clause bsd|new bsd|modified bsd|bsd 3-clause license|new bsd license|bsd-3",
		"GPL-3.0-only":      "gnu general public license v3 (gplv3)|gpl-3.0|gplv3",
		"GPL-3.0-or-later":  "gnu general public license v3 or later (gplv3+)|gpl-3.0+|gplv3+",
		"GPL-2.0-only":      "gnu general public license v2 (gplv2)|gpl-2.0|gplv2",
		"GPL-2.0-or-later":  "gnu general public license v2 or later (gplv2+)|gpl-2.0+|gplv2+",
		"HPND":              "historical permission notice and disclaimer (hpnd)",
		"ISC":               "isc license (iscl)|isc license",
		"LGPL-2.1-or-later": "lgpl-2.1+|gnu lesser general public license v2 or later (lgplv2+)",
		"LGPL-3.0-only":     "gnu lesser general public license v3 (lgplv3)|lgpl-3.0|lgplv3",
		"LGPL-3.0-or-later": "gnu lesser general public license v3 or later (lgplv3+)|lgpl-3.0+|lgplv3+",
		"MIT":               "mit license|the mit license|the mit license (mit)|expat",
		"MPL-2.0":           "mozilla public license 2.0 (mpl 2.0)|mpl 2.0|mozilla public license 2.0",
		"PSF-2.0":           "python software foundation license|psf|psf license",
		"Unlicense":         "the unlicense (unlicense)|the unlicense",
		"Zlib":              "zlib license",
		"CC0-1.0":           "cc0 1.0 universal (cc0 1.0) public domain dedication",
	} {
		for name := range strings.SplitSeq(names, "|") {
			known[name] = id
		}
	}
}

// licenseOf returns the licence of a Python distribution from the three places in which
// its metadata may name it: an SPDX expression, its classifiers where they are clear, or
// else whatever text there is.
func licenseOf(expression, text string, classifiers []string) string {
	if expression != "" {
		return expression
	}
	if id := known[strings.ToLower(strings.TrimSpace(text))]; id != "" {
		return id
	}
	var named []string
	for _, c := range classifiers {
		name, ok := strings.CutPrefix(c, "License :: ")
		if !ok {
			continue
		}
		name = strings.TrimPrefix(name, "OSI Approved :: ")
		if id := known[strings.ToLower(name)]; id != "" {
			named = append(named, id)
		}
	}
	if len(named) == 1 {
		return named[0]
	}
	if text != "" && !strings.EqualFold(text, "unknown") {
		return text
	}
	for _, c := range classifiers {
		if name, ok := strings.CutPrefix(c, "License :: "); ok {
			return strings.TrimPrefix(name, "OSI Approved :: ")
		}
	}
	return ""
}

// normal returns an SPDX expression in the spelling of its identifiers, "" where it is
// none or names a licence that is not known here.
func normal(expression string) string {
	tokens := strings.Fields(strings.NewReplacer("(", " ( ", ")", " ) ").Replace(expression))
	if len(tokens) == 0 || len(tokens) > 200 {
		return ""
	}
	depth, wantID := 0, true
	for i, token := range tokens {
		switch upper := strings.ToUpper(token); {
		case token == "(" && wantID:
			depth++
		case token == ")" && !wantID && depth > 0:
			depth--
		case (upper == "AND" || upper == "OR") && !wantID:
			tokens[i], wantID = upper, true
		case wantID:
			id, orLater := strings.CutSuffix(strings.ToLower(token), "+")
			if tokens[i] = known[id]; tokens[i] == "" || strings.ContainsAny(id, " ()") {
				return ""
			}
			if orLater {
				tokens[i] += "+"
			}
			wantID = false
		default:
			return ""
		}
	}
	if wantID || depth != 0 {
		return ""
	}
	return strings.NewReplacer("( ", "(", " )", ")").Replace(strings.Join(tokens, " "))
}
