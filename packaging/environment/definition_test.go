package environment

import (
	"errors"
	"slices"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
)

func TestRequirements(t *testing.T) {
	t.Parallel()
	hash := "sha256:" + strings.Repeat("0a", 32)
	for name, c := range map[string]struct {
		text string
		want []string
	}{
		"nothing":      {"\n# only a comment\n\n", nil},
		"plain":        {"numpy==1.26.4\nPillow\n", []string{"numpy==1.26.4", "pillow"}},
		"normal names": {"Scikit_Learn >= 1.4 , < 2\r\nruamel.yaml~=0.18", []string{"scikit-learn<2,>=1.4", "ruamel-yaml~=0.18"}},
		"extras":       {"uvicorn[Standard, watch_files] (>=0.20)", []string{"uvicorn[standard,watch-files]>=0.20"}},
		"comments":     {"numpy # the newest\nx==1.0#not-a-comment", nil},
		"markers":      {"tomli>=2 ;python_version<'3.11'  and (sys_platform == \"linux\")", []string{`tomli>=2; python_version < "3.11" and ( sys_platform == "linux" )`}},
		"hashes":       {"idna==3.7 \\\n    --hash=" + hash + " \\\n    --hash=" + hash, []string{"idna==3.7 --hash=" + hash}},
		"bom":          {"\ufeffidna", []string{"idna"}},
	} {
		got, err := ParseRequirements(c.text)
		if name == "comments" {
			if atelier.CodeOf(err) != atelier.Invalid || !strings.Contains(err.Error(), "line 2") {
				t.Errorf("%s: %v, %v", name, got, err)
			}
			continue
		}
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: got %q, %v; want %q", name, got, err, c.want)
		}
	}
}

// TestRefusedRequirements sees that what cannot be built elsewhere is refused, by
// its line and with what to do instead.
func TestRefusedRequirements(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"--index-url https://index.example/simple", "--extra-index-url=https://x", "-i https://x", "-f ./wheels", "--find-links=dir", "--no-index", "--trusted-host x",
		"-e .", "-e git+https://x/y.git", "--editable=.", "-r more.txt", "-rmore.txt", "-c bounds.txt", "--pre", "--no-binary :all:",
		"https://x/y.whl", "git+ssh://x/y", "pkg @ https://x/y.whl", "pkg@file:///x", "./pkg", "../pkg", "/opt/pkg", "~/pkg", "dir/pkg", "pkg-1.0-py3-none-any.whl", "pkg-1.0.tar.gz",
		"numpy=1.26", "numpy 1.26", "numpy>=", "numpy>=1,", "numpy[a b]", "numpy; ", "numpy; cpus > 3", "numpy; extra == 'x'", "${NAME}", "numpy==${V}",
		"numpy --hash=md5:abc", "numpy --global-option=x", "==1", "numpy (>=1",
	} {
		got, err := ParseRequirements("idna\n\n" + text + "\n")
		var e *atelier.Error
		if !errors.As(err, &e) || e.Code != atelier.Invalid || !strings.Contains(err.Error(), "line 3: ") {
			t.Errorf("%q: %q, %v", text, got, err)
		} else if strings.HasPrefix(text, "-") && e.Remedy == "" {
			t.Errorf("%q is refused without a remedy: %v", text, err)
		}
	}
	if _, err := ParseRequirements(strings.Repeat("a", maxText+1)); atelier.CodeOf(err) != atelier.TooLarge {
		t.Error(err)
	}
}

func TestConda(t *testing.T) {
	t.Parallel()
	python, requirements, err := ParseConda(`
name: scoring
channels:
  - conda-forge
dependencies:
  - python=3.11
  - pip>=22
  - pip:
      - numpy==1.26.4
      - Scikit_Learn
`)
	if err != nil || python != "3.11" || !slices.Equal(requirements, []string{"numpy==1.26.4", "scikit-learn"}) {
		t.Errorf("got %q %q %v", python, requirements, err)
	}
	for text, want := range map[string]string{
		"dependencies:\n  - python=3.11\n  - numpy=1.26":    "line 3: ",
		"dependencies:\n  - python>=3.8":                    "line 2: ",
		"dependencies:\n  - python=3.11.4":                  "line 2: ",
		"dependencies:\n  - python=3.10\n  - python=3.11":   "line 3: ",
		"dependencies:\n  - pip:\n      - -e .":             "line 3: ",
		"dependencies:\n  - pip:\n      - [a]":              "line 3: ",
		"dependencies:\n  - npm:\n      - x":                "line 2: ",
		"dependencies: x":                                   "line 1: ",
		"name: x\nprefix: /opt/x":                           "line 2: ",
		"variables:\n  A: b":                                "line 1: ",
		"a: &a [x]\ndependencies: *a":                       "line 1: ",
		"dependencies: &a\n  - *a":                          "line 2: ",
		"dependencies:\n  - conda-forge::numpy":             "line 2: ",
		"dependencies:\n  - pip:\n      - \"numpy\\nidna\"": "line 3: ",
		"numpy==1.0\nidna":                                  "no entries",
		"a: b: c":                                           "no YAML",
	} {
		if _, _, err := ParseConda(text); atelier.CodeOf(err) != atelier.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

// TestDigest sees that what means the same has the same digest, and nothing else.
func TestDigest(t *testing.T) {
	t.Parallel()
	of := func(python, text string) (atelier.Digest, atelier.Digest) {
		r, err := ParseRequirements(text)
		if err != nil {
			t.Fatal(err)
		}
		d, err := New(python, r)
		if err != nil {
			t.Fatal(err)
		}
		digest, err := d.Digest()
		if err != nil {
			t.Fatal(err)
		}
		hash, err := d.Hash("amd64")
		if err != nil {
			t.Fatal(err)
		}
		return digest, hash
	}
	digest, hash := of("", "numpy==1.0\nScikit_Learn>=1, <2")
	if d, h := of(DefaultPython, "scikit-learn <2,>=1 # sorted\nnumpy == 1.0\nNumPy==1.0"); d != digest || h != hash {
		t.Error("the same definition has another digest")
	}
	for _, other := range []string{"numpy==1.1\nScikit_Learn>=1, <2", "numpy==1.0", ""} {
		if d, _ := of("", other); d == digest {
			t.Errorf("%q has the same digest", other)
		}
	}
	if d, _ := of("3.12", "numpy==1.0\nScikit_Learn>=1, <2"); d == digest || digest == hash {
		t.Error("the version of Python or the architecture is not in the digest")
	}
	for _, python := range []string{"3", "3.7", "3.011", "2.7", "3.11.4", "3.x", "4.0", "3.-1"} {
		if _, err := New(python, nil); atelier.CodeOf(err) != atelier.Invalid {
			t.Errorf("Python %q: %v", python, err)
		}
	}
}

// FuzzRequirements reads what may be anything. What is taken is in normal form
// already, and is a plain requirement to pip: no option but hashes, no address.
func FuzzRequirements(f *testing.F) {
	for _, s := range []string{"numpy==1.26.4", "a[b,c]>=1,<2; python_version < '3'", "x \\\n --hash=sha256:" + strings.Repeat("a", 64), "-e .", "a @ https://b", "#", "a\\"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := ParseRequirements(text)
		if err != nil {
			if atelier.CodeOf(err) == "" || atelier.CodeOf(err) == atelier.Internal {
				t.Fatal(err)
			}
			return
		}
		for _, r := range got {
			if strings.HasPrefix(r, "-") || strings.Contains(r, "://") || strings.ContainsAny(r, "\n\r\\$@") {
				t.Fatalf("%q became %q", text, r)
			}
		}
		again, err := ParseRequirements(strings.Join(got, "\n"))
		if err != nil || !slices.Equal(again, got) {
			t.Fatalf("%q is not in normal form: it becomes %q, %v", got, again, err)
		}
	})
}

// FuzzConda reads what may be anything; what is taken is taken as requirements, too.
func FuzzConda(f *testing.F) {
	for _, s := range []string{"dependencies:\n- python=3.11\n- pip:\n  - numpy", "a: &a [*a]", "dependencies: [{pip: [a, b]}, pip]", "!!binary |\n x", "? [a]\n: b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		python, got, err := ParseConda(text)
		if err != nil {
			if atelier.CodeOf(err) == "" || atelier.CodeOf(err) == atelier.Internal {
				t.Fatal(err)
			}
			return
		}
		again, err := ParseRequirements(strings.Join(got, "\n"))
		if err != nil || !slices.Equal(again, got) {
			t.Fatalf("%q is not in normal form: it becomes %q, %v", got, again, err)
		}
		if python != "" && !strings.HasPrefix(python, "3.") {
			t.Fatalf("Python %q", python)
		}
	})
}
