package admin

// Encode is how answers are written.
var Encode = encode
