package distribution

import (
	"encoding/xml"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// cached returns a program that scripts/install-test-tools has built, by the beginning
// of its name.
func cached(t testing.TB, name string) string {
	t.Helper()
	found, err := filepath.Glob("../../.cache/bin/" + name + "-v*")
	if err != nil || len(found) == 0 {
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is missing: scripts/install-test-tools builds it", name)
		}
		t.Skipf("%s is missing: scripts/install-test-tools builds it", name)
	}
	path, err := filepath.Abs(found[len(found)-1])
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestConformance runs OCI's own conformance tool with all that the released
// specification knows and what its next version adds: no check fails, and none is
// left out.
func TestConformance(t *testing.T) {
	t.Parallel()
	tool := cached(t, "oci-conformance")
	x := newRegistry(t)
	x.workspace("plant-7")
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), tool)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(),
		"SSL_CERT_FILE="+x.ca, "OCI_REGISTRY="+x.host, "OCI_VERSION=1.1", "OCI_RESULTS_DIR="+dir,
		"OCI_REPO1=plant-7/conformance/one", "OCI_REPO2=plant-7/conformance/two", "OCI_USERNAME=anybody", "OCI_PASSWORD="+x.admin,
		"OCI_API_BLOBS_UPLOAD_CANCEL=true", "OCI_API_BLOBS_DIGEST_HEADER=true", "OCI_API_MANIFESTS_DIGEST_HEADER=true", "OCI_API_MANIFESTS_TAG_PARAM=true")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	passed := 0
	for _, test := range results(t, filepath.Join(dir, "junit.xml")) {
		if test.Status == "passed" {
			passed++
			continue
		}
		t.Errorf("%s: %s\n%s", test.Name, test.Status, firstLines(test.Out, 20))
	}
	t.Logf("%d checks passed", passed)
	if passed < 700 {
		t.Errorf("only %d checks were made:\n%s", passed, out)
	}
}

type junitTest struct {
	Name   string `xml:"name,attr"`
	Status string `xml:"status,attr"`
	Out    string `xml:"system-out"`
}

func results(t *testing.T, path string) []junitTest {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var report struct {
		Suites []struct {
			Tests []junitTest `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(b, &report); err != nil {
		t.Fatal(err)
	}
	var all []junitTest
	for _, s := range report.Suites {
		all = append(all, s.Tests...)
	}
	return all
}

func firstLines(s string, n int) string {
	lines := strings.Split(s, "\n")
	return strings.Join(lines[:min(n, len(lines))], "\n")
}
