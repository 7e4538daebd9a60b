#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "check.h"
#include "native/initializer.h"
#include "native/optimizer.h"
#include "native/optimizer_kernels.h"

using namespace embedstore;
using embedstore::test::Random;

namespace {

constexpr InstructionSet kSets[] = {InstructionSet::kPortable, InstructionSet::kAvx2, InstructionSet::kAvx512};
constexpr uint32_t kDims[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 24, 31, 33, 40, 63, 64, 65, 100, 128, 257, 4096};

float number(Random& random, float scale) {
  return (static_cast<float>(random.below(1 << 24)) * 0x1p-23f - 1.0f) * scale;
}

Optimizer optimizer_of(uint32_t kind, bool decays, bool clips) {
  Optimizer optimizer;
  optimizer.kind = static_cast<Optimizer::Kind>(kind);
  optimizer.initial_accumulator = 0.1f;
  optimizer.eps = 1e-6f;
  optimizer.beta1 = 0.9f;
  optimizer.beta2 = 0.99f;
  optimizer.l1 = 0.3f;
  optimizer.l2 = 0.2f;
  optimizer.weight_decay = decays ? 0.05f : 0.0f;
  optimizer.clip_norm = clips ? 1.5f : 0.0f;
  return optimizer;
}

// Rows of the vectors' exact size on the heap, so that a sanitizer sees a loop that runs past one.
struct Row {
  std::vector<float> weights, state;

  Row(const Optimizer& optimizer, uint32_t dim) : weights(dim, 0.0f), state(optimizer.state_floats(dim)) {
    optimizer.init_state(state.data(), dim);
  }
  bool operator==(const Row& other) const { return same(weights, other.weights) && same(state, other.state); }

 private:
  static bool same(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
  }
};

std::vector<float> gradient_of(Random& random, uint32_t dim, int step) {
  std::vector<float> gradient(dim);
  const float scale = step % 5 == 4 ? 1e-20f : step % 7 == 6 ? 3e19f : step % 3 == 2 ? 0.01f : 1.0f;
  for (auto& g : gradient) g = random.below(8) == 0 ? 0.0f : number(random, scale);
  return gradient;
}

template <class Visit>
void every_rule(Visit visit) {
  for (uint32_t kind = 1; kind < Optimizer::kKinds; ++kind)
    for (const bool decays : {false, true})
      for (const bool clips : {false, true})
        if (!decays || kind != static_cast<uint32_t>(Optimizer::Kind::kFtrl)) visit(optimizer_of(kind, decays, clips));
}

double one_minus_power(float beta, uint32_t t) { return 1.0 - std::pow(static_cast<double>(beta), t); }

}  // namespace

TEST(optimizers_give_the_same_bits_under_every_instruction_set) {
  CHECK(is_supported(best_instruction_set()));
  every_rule([](const Optimizer& optimizer) {
    for (const uint32_t dim : kDims)
      for (const auto set : kSets) {
        if (!is_supported(set)) continue;
        Random random{dim};
        Row plain(optimizer, dim), other(optimizer, dim);
        for (uint32_t d = 0; d < dim; ++d) plain.weights[d] = other.weights[d] = d % 3 ? number(random, 0.5f) : 0.0f;
        for (int step = 0; step < (dim > 300 ? 8 : 30); ++step) {
          const auto gradient = gradient_of(random, dim, step);
          const float lr = step % 4 == 3 ? 0.0f : 0.1f;
          optimizer.prepare(dim, lr, InstructionSet::kPortable)(plain.weights.data(), plain.state.data(),
                                                                gradient.data(), step + 1);
          optimizer.prepare(dim, lr, set)(other.weights.data(), other.state.data(), gradient.data(), step + 1);
          CHECK(plain == other);
        }
      }
  });
}

TEST(optimizers_step_a_row_at_a_time_as_a_prepared_step_does) {
  every_rule([](const Optimizer& optimizer) {
    constexpr uint32_t kDim = 21;
    Random random{5};
    Row prepared(optimizer, kDim), applied(optimizer, kDim);
    const auto step = optimizer.prepare(kDim, 0.1f);
    for (uint32_t t = 1; t < 50; ++t) {
      const auto gradient = gradient_of(random, kDim, 0);
      step(prepared.weights.data(), prepared.state.data(), gradient.data(), t);
      optimizer.apply(applied.weights.data(), applied.state.data(), gradient.data(), kDim, 0.1f, t);
      CHECK(prepared == applied);
    }
  });
}

TEST(optimizers_bias_correction_is_that_of_pow_for_any_number_of_updates) {
  const float below_one = std::nextafter(1.0f, 0.0f);
  for (const float beta : {0.0f, 0.1f, 0.5f, 0.9f, 0.99f, 0.999f, 0.9999f, 0.9999999f, below_one}) {
    BiasCorrection correction;
    correction.prepare(beta);
    CHECK(correction(1) == 1.0 - static_cast<double>(beta));
    Random random{3};
    for (int i = 0; i < 20'000; ++i) {
      const auto t =
          i < 2000 ? static_cast<uint32_t>(i + 1) : static_cast<uint32_t>(random.next() >> (32 + i % 32)) | 1;
      const double expected = one_minus_power(beta, t);
      CHECK(std::fabs(correction(t) - expected) <= 2e-8 * expected);
    }
    CHECK(correction(std::numeric_limits<uint32_t>::max()) == 1.0);
  }
}

TEST(optimizers_clip_a_gradient_to_its_bound_even_where_squares_overflow) {
  for (const float size : {1e-30f, 1.0f, 1e30f}) {
    Optimizer optimizer = optimizer_of(1, false, true);
    for (const uint32_t dim : {1u, 5u, 64u}) {
      Row row(optimizer, dim);
      const std::vector<float> gradient(dim, size);
      optimizer.apply(row.weights.data(), row.state.data(), gradient.data(), dim, 1.0f, 1);
      double norm = 0;
      for (const float w : row.weights) norm += static_cast<double>(w) * w;
      norm = std::sqrt(norm);
      const double wanted = std::min(1.5, static_cast<double>(size) * std::sqrt(dim));
      CHECK(std::fabs(norm - wanted) <= 1e-6 * wanted);
    }
  }
}

// McMahan et al. 2013, algorithm 1, with its own state; started so that w = w0 before the first gradient.
struct PaperFtrl {
  double alpha, beta, l1, l2, z, n = 0;

  PaperFtrl(double lr, const Optimizer& o, double w0) : alpha(lr), beta(o.beta1), l1(o.l1), l2(o.l2) {
    z = w0 == 0 ? 0 : -w0 * (beta / alpha + l2) - std::copysign(l1, w0);
  }
  double weight() const {
    return std::fabs(z) <= l1 ? 0 : -(z - std::copysign(l1, z)) / ((beta + std::sqrt(n)) / alpha + l2);
  }
  void learn(double g) {
    const double w = weight();
    z += g - (std::sqrt(n + g * g) - std::sqrt(n)) / alpha * w;
    n += g * g;
  }
};

TEST(optimizers_ftrl_is_the_algorithm_of_the_paper_from_any_first_weight) {
  Optimizer optimizer = optimizer_of(7, false, false);
  int zeros = 0, others = 0;
  for (const float l1 : {0.0f, 0.3f, 5.0f})
    for (const float beta : {0.5f, 1.0f})
      for (const float first : {0.0f, 0.05f, -0.4f}) {
        optimizer.l1 = l1;
        optimizer.beta1 = beta;
        Random random{static_cast<uint64_t>(l1 * 10 + beta)};
        Row row(optimizer, 1);
        row.weights[0] = first;
        PaperFtrl paper(0.1f, optimizer, first);
        for (uint32_t t = 1; t <= 500; ++t) {
          const float g = number(random, 1.0f) + (t % 200 < 100 ? 0.1f : -0.1f);
          optimizer.apply(row.weights.data(), row.state.data(), &g, 1, 0.1f, t);
          paper.learn(g);
          CHECK(std::fabs(row.weights[0] - paper.weight()) <= 2e-5);
          ++(row.weights[0] == 0 ? zeros : others);
        }
      }
  CHECK(zeros > 500 && others > 500);
}

TEST(optimizers_ftrl_moves_no_weight_without_a_gradient_whatever_the_learning_rate) {
  const Optimizer optimizer = optimizer_of(7, false, false);
  Random random{8};
  constexpr uint32_t kDim = 19;
  Row row(optimizer, kDim);
  for (uint32_t d = 0; d < kDim; ++d) row.weights[d] = number(random, 0.5f);
  std::vector<float> gradient(kDim);
  for (uint32_t t = 1; t < 40; ++t) {
    for (auto& g : gradient) g = number(random, 1.0f);
    optimizer.apply(row.weights.data(), row.state.data(), gradient.data(), kDim, 0.1f, t);
    const std::vector<float> none(kDim, 0.0f);
    for (const float lr : {0.0f, 0.01f, 5.0f}) {
      Row after = row;
      optimizer.apply(after.weights.data(), after.state.data(), none.data(), kDim, lr, t);
      CHECK(after == row);
    }
  }
}

TEST(optimizers_whatever_is_not_finite_is_found_under_every_instruction_set) {
  for (const auto set : kSets) {
    if (!is_supported(set)) continue;
    const auto finite = optimizer_kernels(set).finite;
    for (const size_t count : {size_t{0}, size_t{1}, size_t{15}, size_t{64}, size_t{129}}) {
      std::vector<float> values(count, std::numeric_limits<float>::max());
      CHECK(finite(values.data(), count));
      for (size_t at = 0; at < count; ++at)
        for (const float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                                std::numeric_limits<float>::quiet_NaN()}) {
          values[at] = bad;
          CHECK(!finite(values.data(), count));
          values[at] = -0.0f;
        }
    }
  }
}

TEST(initializers_give_the_same_bits_under_every_instruction_set_and_for_any_width) {
  using Kind = Initializer::Kind;
  for (const Kind kind : {Kind::kZeros, Kind::kConstant, Kind::kUniform, Kind::kNormal, Kind::kTruncatedNormal})
    for (const uint64_t id : {uint64_t{0}, uint64_t{77}, ~uint64_t{0}}) {
      const Initializer init{kind, 0.7f, 3};
      std::vector<float> widest(4096);
      init.fill(id, widest.data(), 4096, InstructionSet::kPortable);
      for (const uint32_t dim : kDims)
        for (const auto set : kSets) {
          if (!is_supported(set)) continue;
          std::vector<float> row(dim, -1.0f);
          init.fill(id, row.data(), dim, set);
          CHECK(std::memcmp(row.data(), widest.data(), dim * sizeof(float)) == 0);
        }
    }
}

TEST(initializers_draw_from_the_distributions_that_they_name) {
  const auto phi = [](double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); };
  const double outside = 2 * phi(-2);
  for (const bool truncated : {false, true}) {
    const Initializer init{truncated ? Initializer::Kind::kTruncatedNormal : Initializer::Kind::kNormal, 1.0f, 11};
    std::vector<float> values(1 << 20);
    for (uint32_t id = 0; id < values.size() / 64; ++id) init.fill(id, values.data() + id * 64, 64);
    std::sort(values.begin(), values.end());
    double worst = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      const double below = phi(static_cast<double>(values[i]));
      const double expected = truncated ? (below - phi(-2)) / (1 - outside) : below;
      worst = std::max(worst, std::fabs(expected - (static_cast<double>(i) + 0.5) / values.size()));
    }
    CHECK(worst < 1.95 / std::sqrt(values.size()));  // Kolmogorov-Smirnov, one in a thousand
    CHECK(truncated ? values.front() >= -2 && values.back() <= 2 : values.front() < -4 && values.back() > 4);
  }
}
