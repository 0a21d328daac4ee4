// Package store knows models as folders of files: weights, golden vectors and the Card
// that says what they are. Open finds one and checks it against its card, Verify also
// runs its networks on their golden vectors, Save and Install write one, whole or not
// at all.
package store
