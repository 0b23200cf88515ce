// Runs a file of `hat export` on a picture, with onnxruntime alone.
//
//   predict MODEL.onnx PICTURE.ppm [LABELS.pgm] [--threads N]
//
// The picture is a binary PPM, 8 bits a channel (`convert a.jpg a.ppm` makes one). Of a segmentation
// LABELS.pgm gets the class index of each pixel, in the size of the picture; of a classification the
// likeliest classes are printed. Both are what `hat predict` gives.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <numeric>
#include <regex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Picture {
    int64_t height = 0, width = 0;
    std::vector<uint8_t> rgb;  // height x width x 3
};

// What the file says of itself. Its values are JSON, of which a few patterns are read here;
// with a JSON library at hand take that.
struct Description {
    std::string task;
    std::vector<std::string> classes;
    bool takes_bytes = false;     // exported with --with-preprocess
    std::vector<float> matrix;    // 3 x 4: each channel in red, green, blue and 1
    int64_t divisor = 1;          // sides are filled up to multiples of it
    std::vector<float> fill;      // with this colour; empty: with the mean colour
};

std::string entry(const Ort::ModelMetadata& metadata, const char* key) {
    Ort::AllocatorWithDefaultOptions allocator;
    auto text = metadata.LookupCustomMetadataMapAllocated(key, allocator);
    if (!text) throw std::runtime_error(std::string("the file has no ") + key + ": export it again");
    return text.get();
}

std::vector<float> numbers_in(const std::string& text) {
    static const std::regex number(R"(-?\d+(\.\d+)?([eE][-+]?\d+)?)");
    std::vector<float> found;
    for (std::sregex_iterator at(text.begin(), text.end(), number), end; at != end; ++at)
        found.push_back(std::strtof(at->str().c_str(), nullptr));
    return found;
}

std::vector<std::string> strings_in(const std::string& text) {
    static const std::regex quoted("\"((?:[^\"\\\\]|\\\\.)*)\"");
    std::vector<std::string> found;
    for (std::sregex_iterator at(text.begin(), text.end(), quoted), end; at != end; ++at)
        found.push_back((*at)[1]);
    return found;
}

// The transforms of validation: only PadToMultiple is done here.
void read_transforms(const std::string& text, Description& said) {
    if (text == "[]") return;
    std::smatch match;
    if (!std::regex_match(text, std::regex(R"(\[\{"type": "PadToMultiple"[^{}]*\}\])"))) {
        std::cerr << "note: the picture must be prepared already as this says: " << text << "\n";
        return;
    }
    said.divisor = 64;
    if (std::regex_search(text, match, std::regex(R"("divisor": (\d+))"))) said.divisor = std::stoll(match[1]);
    if (std::regex_search(text, match, std::regex(R"("fill": (\[[^\]]*\]))"))) said.fill = numbers_in(match[1]);
}

Description describe(const Ort::Session& session) {
    auto metadata = session.GetModelMetadata();
    Description said;
    said.task = entry(metadata, "hat.task");
    said.classes = strings_in(entry(metadata, "hat.classes"));
    said.takes_bytes = entry(metadata, "hat.preprocess") == "true";
    said.matrix = numbers_in(entry(metadata, "hat.color_matrix"));
    if (!said.takes_bytes && said.matrix.size() != 12)
        throw std::runtime_error("export the model with --with-preprocess");
    read_transforms(entry(metadata, "hat.transforms"), said);
    return said;
}

Picture read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string magic, word;
    std::array<int64_t, 3> header{};  // width, height, largest value
    if (!(file >> magic) || magic != "P6") throw std::runtime_error(path + ": not a binary PPM");
    for (auto& number : header) {
        while (file >> word && word[0] == '#') std::getline(file, word);
        number = std::stoll(word);
    }
    file.get();  // one blank
    Picture picture{header[1], header[0], {}};
    if (header[2] != 255 || picture.height < 1 || picture.width < 1)
        throw std::runtime_error(path + ": not 8 bits a channel");
    picture.rgb.resize(picture.height * picture.width * 3);
    file.read(reinterpret_cast<char*>(picture.rgb.data()), picture.rgb.size());
    if (!file) throw std::runtime_error(path + ": cut");
    return picture;
}

// Filled up right and below until `divisor` divides both sides.
Picture padded(const Picture& picture, const Description& said) {
    const auto up = [&](int64_t side) { return (side + said.divisor - 1) / said.divisor * said.divisor; };
    Picture whole{up(picture.height), up(picture.width), {}};
    std::array<uint8_t, 3> fill{};
    for (int channel = 0; channel < 3; ++channel) {
        int64_t sum = 0;
        for (size_t at = channel; at < picture.rgb.size(); at += 3) sum += picture.rgb[at];
        const double mean = static_cast<double>(sum) / (picture.height * picture.width);
        fill[channel] = static_cast<uint8_t>(said.fill.size() == 3 ? said.fill[channel] : std::nearbyint(mean));
    }
    whole.rgb.resize(whole.height * whole.width * 3);
    for (size_t at = 0; at < whole.rgb.size(); ++at) whole.rgb[at] = fill[at % 3];
    for (int64_t row = 0; row < picture.height; ++row)
        std::copy_n(&picture.rgb[row * picture.width * 3], picture.width * 3, &whole.rgb[row * whole.width * 3]);
    return whole;
}

// Channel by channel, as the network takes it.
template <typename T, typename Convert>
std::vector<T> planes(const Picture& picture, Convert convert) {
    const int64_t pixels = picture.height * picture.width;
    std::vector<T> result(3 * pixels);
    for (int64_t pixel = 0; pixel < pixels; ++pixel)
        for (int channel = 0; channel < 3; ++channel)
            result[channel * pixels + pixel] = convert(&picture.rgb[3 * pixel], channel);
    return result;
}

Ort::Value run(Ort::Session& session, const Description& said, const Picture& picture) {
    const std::array<int64_t, 4> shape{1, 3, picture.height, picture.width};
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const float* matrix = said.matrix.data();
    std::vector<uint8_t> bytes;
    std::vector<float> floats;
    Ort::Value input{nullptr};
    if (said.takes_bytes) {
        bytes = planes<uint8_t>(picture, [](const uint8_t* rgb, int channel) { return rgb[channel]; });
        input = Ort::Value::CreateTensor<uint8_t>(memory, bytes.data(), bytes.size(), shape.data(), 4);
    } else {
        // Each product and sum is rounded to a float, as in the training: no fused multiply-add.
        floats = planes<float>(picture, [matrix](const uint8_t* rgb, int channel) {
            const float* row = matrix + 4 * channel;
            return row[0] * rgb[0] + row[1] * rgb[1] + row[2] * rgb[2] + row[3];
        });
        input = Ort::Value::CreateTensor<float>(memory, floats.data(), floats.size(), shape.data(), 4);
    }
    Ort::AllocatorWithDefaultOptions allocator;
    const auto in = session.GetInputNameAllocated(0, allocator), out = session.GetOutputNameAllocated(0, allocator);
    const char *inputs[] = {in.get()}, *outputs[] = {out.get()};
    return std::move(session.Run(Ort::RunOptions{nullptr}, inputs, &input, 1, outputs, 1)[0]);
}

// The best class of each place: of an argmax inside the file, or here; of equals the first.
std::vector<uint8_t> labels_of(const Ort::Value& output, int64_t classes, int64_t places) {
    std::vector<uint8_t> labels(places);
    if (output.GetTensorTypeAndShapeInfo().GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64) {
        const int64_t* indices = output.GetTensorData<int64_t>();
        std::transform(indices, indices + places, labels.begin(), [](int64_t index) { return static_cast<uint8_t>(index); });
        return labels;
    }
    const float* scores = output.GetTensorData<float>();
    for (int64_t place = 0; place < places; ++place)
        for (int64_t index = 1; index < classes; ++index)
            if (scores[index * places + place] > scores[labels[place] * places + place])
                labels[place] = static_cast<uint8_t>(index);
    return labels;
}

void segment(const Ort::Value& output, const Description& said, const Picture& picture, const Picture& whole,
             const std::string& path) {
    const auto shape = output.GetTensorTypeAndShapeInfo().GetShape();  // 1, classes or 1, h, w
    const auto cells = labels_of(output, shape[1], shape[2] * shape[3]);
    std::vector<uint8_t> labels;
    std::vector<int64_t> counts(256);
    for (int64_t y = 0; y < picture.height; ++y)
        for (int64_t x = 0; x < picture.width; ++x) {
            const int64_t row = y * shape[2] / whole.height, column = x * shape[3] / whole.width;
            labels.push_back(cells[row * shape[3] + column]);
            ++counts[labels.back()];
        }
    if (!path.empty()) {
        std::ofstream file(path, std::ios::binary);
        file << "P5\n" << picture.width << " " << picture.height << "\n255\n";
        file.write(reinterpret_cast<const char*>(labels.data()), labels.size());
        if (!file.flush()) throw std::runtime_error(path + ": can't be written");
    }
    for (size_t index = 0; index < said.classes.size(); ++index)
        if (counts[index]) std::cout << said.classes[index] << " " << 100.0 * counts[index] / labels.size() << " %\n";
}

void classify(const Ort::Value& output, const Description& said) {
    const auto info = output.GetTensorTypeAndShapeInfo();
    if (info.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64) {
        std::cout << said.classes.at(output.GetTensorData<int64_t>()[0]) << "\n";
        return;
    }
    const float* scores = output.GetTensorData<float>();
    const size_t count = info.GetElementCount();
    const double highest = *std::max_element(scores, scores + count);
    double sum = 0;
    for (size_t index = 0; index < count; ++index) sum += std::exp(scores[index] - highest);
    std::vector<size_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scores[a] > scores[b]; });
    for (size_t place = 0; place < std::min<size_t>(3, count); ++place)
        std::cout << said.classes.at(order[place]) << " " << 100 * std::exp(scores[order[place]] - highest) / sum << " %\n";
}

int main(int argc, char** argv) try {
    std::vector<std::string> words;
    int threads = 0;  // one a core
    for (int index = 1; index < argc; ++index) {
        const std::string word = argv[index];
        if (word == "--threads" && index + 1 < argc) threads = std::stoi(argv[++index]);
        else words.push_back(word);
    }
    if (words.size() < 2 || words.size() > 3) {
        std::cerr << "predict MODEL.onnx PICTURE.ppm [LABELS.pgm] [--threads N]\n";
        return 2;
    }
    Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "predict");
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(threads);
    Ort::Session session(env, words[0].c_str(), options);
    const auto said = describe(session);
    const auto picture = read_ppm(words[1]);
    const auto whole = padded(picture, said);
    const auto output = run(session, said, whole);
    if (said.task == "segmentation") segment(output, said, picture, whole, words.size() > 2 ? words[2] : "");
    else classify(output, said);
    return 0;
} catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
}
