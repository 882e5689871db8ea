/**
 * The shapes of the data that the parts of the page share.
 *
 * @typedef {Uint8Array | Int16Array | Int32Array} Classes  the class of each pixel, row by row
 *
 * @typedef {object} Prediction  the answer of the service for one prediction, for one image
 * @property {string} name  the name of its file
 * @property {Classes} classes  the predicted class of each pixel
 * @property {?Float32Array} nll  in nats, 0 where ignored; null without logits or without truth
 * @property {?Float32Array} confidence  from 0 to 1; null without logits
 * @property {?Float32Array} entropy  in nats; null without logits
 * @property {?Classes[]} topClasses  the best, the second and the third class of each pixel
 * @property {?Float32Array[]} topProbabilities  their probabilities
 * @property {object} answer  the JSON object of /v1/evaluate, or of /v1/predict without truth
 *
 * @typedef {object} Scene  all that is shown of one image
 * @property {number} width
 * @property {number} height
 * @property {number} numClasses
 * @property {string[]} classNames  one for each class; "class 7" where the service has no name
 * @property {Uint8Array} colours  red, green and blue of each class, 3 * numClasses entries
 * @property {[number, number, number]} ignoreColour
 * @property {?ImageBitmap} photo
 * @property {?Int32Array} truth  the class of each pixel, -1 where ignored; null without truth
 * @property {Prediction[]} predictions  one or two
 * @property {number} imageIndex  the index of the image in its batch
 * @property {number} numImages
 *
 * @typedef {object} Camera  the part of the image that every pane shows
 * @property {number} scale  CSS pixels for each pixel of the image
 * @property {number} x  the image coordinate in the centre of a pane, from 0 to width
 * @property {number} y
 *
 * @typedef {object} Problem  an error, with the members of application/problem+json
 * @property {string} detail
 * @property {string} [where]
 * @property {string} [expected]
 * @property {string} [got]
 * @property {string} [fix]
 * @property {number} [status]
 *
 * @typedef {object} Progress
 * @property {string} phase  such as "Sending" or "Computing"
 * @property {?number} fraction  from 0 to 1; null if unknown
 * @property {() => void} cancel
 *
 * @typedef {object} State
 * @property {?Scene} scene
 * @property {number} shown  the index of the prediction that panes and panels show, 0 or 1
 * @property {Object<string, string>} options  the options of the requests that differ from the
 *   service's defaults, such as {label_space: "ade_zero"}
 * @property {?Problem} problem
 * @property {?Progress} progress
 * @property {?Camera} camera  null: the whole image fits in its pane
 * @property {string[]} panes  the panes that are shown, among photo, truth, prediction, error, nll,
 *   confidence, entropy, better, other (the prediction that is not `shown`)
 * @property {number} opacity  of classes over the photo, from 0 to 1
 * @property {number} minNll  pixels with a smaller NLL are dimmed
 * @property {number} maxConfidence  pixels with a greater confidence are dimmed
 * @property {"plain" | "kinds"} errorColours  of the error pane: all errors alike, or boundary
 *   errors apart from confusion in the colour of the predicted class
 * @property {number} borderPx  an error at most this many pixels from a true boundary is a boundary error
 * @property {"lnC" | "auto"} nllScale  the NLL of the last colour: ln C, or the 99th percentile
 * @property {?{left: string, right: string, at: number}} slider  two panes over each other, divided
 *   at a fraction of the width; null if panes are side by side
 * @property {?{x: number, y: number}} hover  the pixel under the pointer or the keyboard's cursor
 * @property {?number} highlighted  the class that a table's row or a matrix's label points at
 * @property {?number} isolated  the only class that is not dimmed
 * @property {?{truth: number, predicted: number}} cell  the cell of the confusion matrix whose
 *   pixels alone are not dimmed
 */

export {};
