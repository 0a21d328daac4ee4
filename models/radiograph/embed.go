// Package embedded holds the files of the model of radiographs that is part of the program: weights
// and golden vectors of its networks, and their card. Package store opens it by name.
package embedded

import "embed"

// Files are those of the model's folder.
//
//go:embed card.json *.safetensors
var Files embed.FS
