package atelier

// Model is a named line of versions.
type Model struct {
	Meta
	Description string            `json:"description,omitempty"`
	Framework   string            `json:"framework,omitempty"` // "onnx", "sklearn", …
	Tags        map[string]string `json:"tags,omitempty"`
	// Latest is the number of the newest version that is not archived, 0 where there is none.
	Latest int `json:"latest"`
	// Next is the number that the next version gets. Numbers are never used again.
	Next int `json:"next"`
}

// Version is one immutable version of a model. Its number, variants, files and
// signature never change; description, tags and archived state do.
type Version struct {
	Meta
	Model       string            `json:"model"` // the model's name
	ModelID     string            `json:"model_id"`
	Number      int               `json:"number"` // from 1
	Description string            `json:"description,omitempty"`
	Tags        map[string]string `json:"tags,omitempty"`
	Archived    bool              `json:"archived,omitempty"`
	// Digest names the version as a whole: the digest of its manifest, which
	// lists variants and files by digest.
	Digest   Digest    `json:"digest"`
	Size     int64     `json:"size"` // bytes of all files of all variants
	Variants []Variant `json:"variants"`
}

// The kinds of variants.
const (
	VariantONNX   = "onnx"   // a model that ONNX Runtime runs
	VariantPython = "python" // a scoring script, with the environment that it runs in
	VariantMLflow = "mlflow" // a directory that MLflow wrote, with its environment; the entry is its MLmodel
	VariantPickle = "pickle" // an estimator in a file of joblib's or pickle's, with its environment
)

// Variant is one form of a model version, for one kind of engine. A device
// gets the first variant whose requirements its facts meet.
type Variant struct {
	Kind string `json:"kind"`
	// Entry is the path of the file that the engine loads.
	Entry     string       `json:"entry"`
	Files     []File       `json:"files"`
	Requires  Requirements `json:"requires"`
	Signature *Signature   `json:"signature,omitempty"`
	// Environment is what a variant in Python runs in, for the one architecture that it
	// requires; nil for other kinds.
	Environment *VariantEnvironment `json:"environment,omitempty"`
}

// InPython reports whether v runs in a Python environment.
func (v *Variant) InPython() bool {
	return v.Kind == VariantPython || v.Kind == VariantMLflow || v.Kind == VariantPickle
}

// Content returns every file that v is made of, its environment's among them.
func (v *Variant) Content() []File {
	files := append([]File(nil), v.Files...)
	if v.Environment != nil {
		files = append(files, v.Environment.Artifact)
	}
	return files
}

// File is one file of a variant.
type File struct {
	Path   string `json:"path"` // relative, with '/'; see CheckFilePath
	Digest Digest `json:"digest"`
	Size   int64  `json:"size"`
}

// Requirements say what a device must offer to run a variant.
type Requirements struct {
	// Runtime is the runtime that must be there or be sent along, "" for none.
	Runtime string `json:"runtime,omitempty"`
	// Arch lists the architectures that the variant runs on, in Go's words
	// ("amd64", "arm64"); empty means any.
	Arch []string `json:"arch,omitempty"`
}

// Signature describes what a model takes and gives.
type Signature struct {
	Inputs  []TensorSpec `json:"inputs"`
	Outputs []TensorSpec `json:"outputs"`
}

// TensorSpec describes one input or output.
type TensorSpec struct {
	Name string `json:"name"`
	// Type is the datatype in Open Inference Protocol v2's words: FP32, INT64, BYTES, …
	Type string `json:"datatype"`
	// Shape gives the size of each dimension; -1 is one that the caller chooses.
	Shape []int64 `json:"shape"`
}

// RuntimeONNX is the name of the runtime that VariantONNX requires.
const RuntimeONNX = "onnxruntime"

// Runtime is a library or program that variants need and that the hub sends
// along like any other content: ONNX Runtime's shared library, for example.
// Runtimes belong to the hub, not to a workspace.
type Runtime struct {
	Meta              // Name is "onnxruntime"
	Version    string `json:"version"`
	OS         string `json:"os"`   // "linux"
	Arch       string `json:"arch"` // "amd64", "arm64"
	Files      []File `json:"files"`
	Entry      string `json:"entry"`                 // the file that is loaded or started
	NeedsGlibc string `json:"needs_glibc,omitempty"` // the oldest glibc that it runs with, such as "2.28"
}
